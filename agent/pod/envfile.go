package pod

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/env"
)

// maxEnvFile is how large, in bytes, a file of variables may be.
const maxEnvFile = 64 << 10

// fromFile reads a variable from a file of an emptyDir volume; false leaves it out.
// Who wrote the file may have put anything there: links that lead out lead nowhere,
// and nothing but a file is read.
func (s *starting) fromFile(r *corev1.FileKeySelector) (string, bool, error) {
	root, ok := s.volumes[r.VolumeName]
	if !ok {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", r.VolumeName)
	}
	for i := range s.pod.Spec.Volumes {
		if v := &s.pod.Spec.Volumes[i]; v.Name == r.VolumeName && v.EmptyDir == nil {
			return "", false, fmt.Errorf("the volume %q referenced by FileKeyRef must be an emptyDir", r.VolumeName)
		}
	}
	text, err := readWithin(root, r.Path)
	if errors.Is(err, fs.ErrNotExist) && isTrue(r.Optional) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("couldn't read the env file %q of volume %q: %w", r.Path, r.VolumeName, err)
	}
	vars, err := env.ParseFile(text)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse the env file %q of volume %q: %w", r.Path, r.VolumeName, err)
	}
	v, ok := vars[r.Key]
	if !ok && !isTrue(r.Optional) {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", r.Key, r.Path)
	}
	return v, ok, nil
}

// readWithin reads a file below a folder, as if that were the root.
func readWithin(root, path string) (string, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	handle, err := pathrs.OpenatInRoot(dir, path)
	if err != nil {
		return "", err
	}
	defer handle.Close()
	if info, err := handle.Stat(); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", errors.New("it is no regular file")
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err == nil && len(b) > maxEnvFile {
		err = fmt.Errorf("it is larger than %d bytes", maxEnvFile)
	}
	return string(b), err
}
