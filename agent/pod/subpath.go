package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
)

// subPathsDir is the folder, in a pod's directory, of the parts of volumes that its
// containers see.
const subPathsDir = "volume-subpaths"

// subPath binds a part of a volume to a place of the node's own, target, and returns
// it. A container that can write to the volume may change what a path means at any
// time; what was opened and bound here stays what it is. Links are resolved as if the
// volume were the root, so none leads out; a missing directory is made.
func subPath(volume, sub, target string) (string, error) {
	if filepath.IsAbs(sub) || strings.Contains("/"+sub+"/", "/../") {
		return "", fmt.Errorf("subPath %q must be relative and must not contain '..'", sub)
	}
	root, err := os.OpenFile(volume, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer root.Close()
	part, err := openPart(root, sub)
	if err != nil {
		return "", err
	}
	defer part.Close()
	info, err := part.Stat()
	if err != nil {
		return "", err
	}
	if err := placeFor(target, info.IsDir()); err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", part.Fd()), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind %s of %s to %s: %w", sub, volume, target, err)
	}
	return target, nil
}

// openPart opens what is at sub within root, and makes it if it is not there.
func openPart(root *os.File, sub string) (*os.File, error) {
	part, err := pathrs.OpenatInRoot(root, sub)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return part, err
	}
	info, err := root.Stat()
	if err != nil {
		return nil, err
	}
	dir, err := pathrs.MkdirAllHandle(root, sub, info.Mode().Perm()|0o700)
	if err != nil {
		return nil, err
	}
	// A directory made for the pod is as open as the volume itself.
	if err := dir.Chmod(info.Mode()); err != nil {
		dir.Close()
		return nil, fmt.Errorf("open %s to the pod: %w", sub, err)
	}
	return dir, nil
}

// placeFor makes the place of a mount, and clears it of what an earlier start bound.
func placeFor(target string, dir bool) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue
		}
		if err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("clear %s: %w", target, err)
		}
		break
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear %s: %w", target, err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if dir {
		return os.Mkdir(target, 0o750)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// subPathOf is where the part of a volume is bound that a container's mount shows.
func (s *starting) subPathOf(volume string, mount int) string {
	return filepath.Join(s.d.Volumes.PodDir(string(s.pod.UID)), subPathsDir, volume, s.c.Name, strconv.Itoa(mount))
}
