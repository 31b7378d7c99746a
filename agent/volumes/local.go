package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/client"
)

// emptyDir makes a directory that everybody may write to, on tmpfs when the
// medium is Memory.
func (m *Manager) emptyDir(pod *corev1.Pod, v *corev1.Volume) (string, error) {
	dir := m.dir(pod, "empty-dir", v.Name)
	made, err := mkdirAll(dir)
	if err != nil {
		return "", err
	}
	switch medium := v.EmptyDir.Medium; {
	case medium == corev1.StorageMediumDefault:
	case medium == corev1.StorageMediumMemory:
		mounted, err := isMountPoint(dir)
		if err != nil {
			return "", err
		}
		if mounted {
			return dir, nil
		}
		made = true
		data := "mode=0777"
		if l := v.EmptyDir.SizeLimit; l != nil && !l.IsZero() {
			data += fmt.Sprintf(",size=%d", l.Value())
		}
		if err := mountTmpfs(dir, 0, data); err != nil {
			return "", err
		}
	case medium == corev1.StorageMediumHugePages || strings.HasPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix)):
		mounted, err := isMountPoint(dir)
		if err != nil {
			return "", err
		}
		if mounted {
			return dir, nil
		}
		made = true
		size, err := hugePageSize(pod, medium)
		if err != nil {
			return "", err
		}
		data := fmt.Sprintf("mode=0777,pagesize=%d", size)
		if l := v.EmptyDir.SizeLimit; l != nil && !l.IsZero() {
			data += fmt.Sprintf(",size=%d", l.Value())
		}
		if err := unix.Mount("nodev", dir, "hugetlbfs", 0, data); err != nil {
			return "", fmt.Errorf("mount huge pages of %d bytes on %s: %w", size, dir, err)
		}
	default:
		return "", fmt.Errorf("medium %q of emptyDir is not supported by this node; use \"\", Memory or HugePages", medium)
	}
	if !made {
		return dir, nil
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return "", err
	}
	if g := fsGroup(pod); g != nil {
		if err := own(dir, *g); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// hugePageSize is the size in bytes of the pages of a medium: HugePages-SIZE says it,
// HugePages means the one size that the pod's containers ask for.
func hugePageSize(pod *corev1.Pod, medium corev1.StorageMedium) (int64, error) {
	sizes := map[string]bool{}
	podspec.Containers(pod, func(c *corev1.Container, _ bool) {
		for name := range c.Resources.Requests {
			if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
				sizes[size] = true
			}
		}
	})
	want, ok := strings.CutPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix))
	if !ok {
		if len(sizes) != 1 {
			return 0, fmt.Errorf("medium HugePages of emptyDir: the pod's containers ask for huge pages of %d sizes; use HugePages-SIZE", len(sizes))
		}
		for size := range sizes {
			want = size
		}
	} else if !sizes[want] {
		return 0, fmt.Errorf("medium %s of emptyDir: no container of the pod asks for hugepages-%s", medium, want)
	}
	q, err := resource.ParseQuantity(want)
	if err != nil {
		return 0, fmt.Errorf("medium %s of emptyDir: %w", medium, err)
	}
	return q.Value(), nil
}

// own gives a directory to a group, and its future files by the set-gid bit.
func own(dir string, gid int64) error {
	if err := os.Chown(dir, -1, int(gid)); err != nil {
		return fmt.Errorf("give %s to group %d: %w", dir, gid, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return os.Chmod(dir, info.Mode().Perm()|0o060|fs.ModeSetgid|0o010)
}

// hostPath checks the path against the demanded type, and creates it for the
// types that ask for that.
func hostPath(h *corev1.HostPathVolumeSource) (string, error) {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	if kind == corev1.HostPathUnset {
		return h.Path, nil
	}
	info, err := os.Stat(h.Path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return "", fmt.Errorf("hostPath: %w", err)
	}
	switch kind {
	case corev1.HostPathDirectoryOrCreate:
		if missing {
			return h.Path, os.MkdirAll(h.Path, 0o755)
		}
		kind = corev1.HostPathDirectory
	case corev1.HostPathFileOrCreate:
		if missing {
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDONLY, 0o644)
			if err != nil {
				return "", fmt.Errorf("hostPath: %w", err)
			}
			return h.Path, f.Close()
		}
		kind = corev1.HostPathFile
	}
	names := map[corev1.HostPathType]string{
		corev1.HostPathDirectory: "a directory", corev1.HostPathFile: "a file", corev1.HostPathSocket: "a socket",
		corev1.HostPathCharDev: "a character device", corev1.HostPathBlockDev: "a block device",
	}
	want, known := names[kind]
	if !known {
		return "", fmt.Errorf("hostPath type check failed: %s is of the unknown type %q", h.Path, kind)
	}
	ok := false
	if !missing {
		switch mode := info.Mode(); kind {
		case corev1.HostPathDirectory:
			ok = mode.IsDir()
		case corev1.HostPathFile:
			ok = mode.IsRegular()
		case corev1.HostPathSocket:
			ok = mode&fs.ModeSocket != 0
		case corev1.HostPathCharDev:
			ok = mode&fs.ModeCharDevice != 0
		case corev1.HostPathBlockDev:
			ok = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
		}
	}
	if !ok {
		return "", fmt.Errorf("hostPath type check failed: %s is not %s", h.Path, want)
	}
	return h.Path, nil
}

// claim resolves a bound claim whose volume is a path of this node.
func (m *Manager) claim(ctx context.Context, pod *corev1.Pod, name string) (string, error) {
	pvc, err := client.Get[*corev1.PersistentVolumeClaim](ctx, m.cfg.Client, client.Key{Resource: client.PersistentVolumeClaims, Namespace: pod.Namespace, Name: name})
	if err != nil {
		return "", fmt.Errorf("persistentvolumeclaim %q: %w", name, err)
	}
	if pvc.Status.Phase != corev1.ClaimBound || pvc.Spec.VolumeName == "" {
		return "", fmt.Errorf("persistentvolumeclaim %q is not bound", name)
	}
	pv, err := client.Get[*corev1.PersistentVolume](ctx, m.cfg.Client, client.Key{Resource: client.PersistentVolumes, Name: pvc.Spec.VolumeName})
	if err != nil {
		return "", fmt.Errorf("persistentvolume %q: %w", pvc.Spec.VolumeName, err)
	}
	switch {
	case pv.Spec.HostPath != nil:
		return hostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		if _, err := os.Stat(pv.Spec.Local.Path); err != nil {
			return "", fmt.Errorf("local volume: %w", err)
		}
		return pv.Spec.Local.Path, nil
	}
	return "", fmt.Errorf("persistentvolume %q of claim %q has a type that this node does not support yet; use hostPath or local", pv.Name, name)
}

// mkdirAll makes dir and reports whether it was new.
func mkdirAll(dir string) (bool, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return false, err
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}
