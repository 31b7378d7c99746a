package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci"
)

// mounts lists the bind mounts: the pod's own files, then those asked for.
func (s *Server) mounts(c *container) ([]oci.Mount, error) {
	var list []oci.Mount
	taken := map[string]bool{}
	for _, m := range c.config().GetMounts() {
		taken[filepath.Clean(m.GetContainerPath())] = true
	}
	for _, name := range []string{"hostname", "resolv.conf"} {
		if t := "/etc/" + name; !taken[t] {
			list = append(list, oci.Mount{
				Source: filepath.Join(s.podDir(c.Pod), name), Target: t, ReadOnly: c.security().GetReadonlyRootfs(), Mapped: true,
			})
		}
	}
	for _, m := range c.config().GetMounts() {
		if m.GetImage() != nil {
			o, err := s.imageMount(m)
			if err != nil {
				return nil, err
			}
			list = append(list, o)
			continue
		}
		source := m.GetHostPath()
		if _, err := os.Stat(source); os.IsNotExist(err) {
			// The kubelet relies on missing host folders being made.
			if err := os.MkdirAll(source, 0o755); err != nil {
				return nil, fmt.Errorf("making the host path of %s: %w", m.GetContainerPath(), err)
			}
		}
		shift, err := mapped(m, c.pod.users)
		if err != nil {
			return nil, err
		}
		o := oci.Mount{
			Mapped: shift, Source: source, Target: m.GetContainerPath(), ReadOnly: m.GetReadonly(), RecursiveReadOnly: m.GetRecursiveReadOnly(),
		}
		switch m.GetPropagation() {
		case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			o.Propagation = unix.MS_SLAVE
		case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			o.Propagation = unix.MS_SHARED
		}
		list = append(list, o)
	}
	return list, nil
}

// imageMount shows an image's files, or those of a folder in it, read-only and
// not executable, as Kubernetes has it for image volumes.
func (s *Server) imageMount(m *runtimeapi.Mount) (oci.Mount, error) {
	img, err := s.images.Get(m.GetImage().GetImage())
	if err != nil {
		return oci.Mount{}, fmt.Errorf("image to mount on %s: %w", m.GetContainerPath(), err)
	}
	o := oci.Mount{Layers: s.images.Folders(img), Target: m.GetContainerPath(), ReadOnly: true, Flags: unix.MOUNT_ATTR_NOEXEC}
	if sub := m.GetImageSubPath(); sub != "" {
		if o.Layers, err = subFolders(o.Layers, sub); err != nil {
			return oci.Mount{}, err
		}
	}
	return o, nil
}

// subFolders are the layers' parts of one folder. A link on the way is refused: it
// could lead out of the image.
func subFolders(layers []string, sub string) ([]string, error) {
	if !filepath.IsLocal(sub) {
		return nil, fmt.Errorf("%w: imageSubPath %q must be a path within the image", errInvalid, sub)
	}
	var found []string
	for _, l := range layers {
		at, hidden := l, false
		ok := true
		for _, step := range strings.Split(filepath.Clean(sub), "/") {
			at = filepath.Join(at, step)
			st, err := os.Lstat(at)
			if err != nil {
				ok = false
				break
			}
			if !st.IsDir() {
				if st.Mode()&os.ModeCharDevice != 0 { // a whiteout: nothing below shows
					return found, nonEmpty(found, sub)
				}
				return nil, fmt.Errorf("%w: imageSubPath %q: %s is not a folder", errInvalid, sub, step)
			}
			value := make([]byte, 1)
			if n, err := unix.Lgetxattr(at, "trusted.overlay.opaque", value); err == nil && n == 1 && value[0] == 'y' {
				hidden = true
			}
		}
		if ok {
			found = append(found, at)
		}
		if hidden {
			break
		}
	}
	return found, nonEmpty(found, sub)
}

func nonEmpty(found []string, sub string) error {
	if len(found) == 0 {
		return fmt.Errorf("%w: imageSubPath %q is not in the image", errInvalid, sub)
	}
	return nil
}

// checkMounts refuses what the CRI forbids, before anything is made.
func checkMounts(list []*runtimeapi.Mount, pod *oci.Users) error {
	for _, m := range list {
		if _, err := mapped(m, pod); err != nil {
			return err
		}
		switch {
		case !filepath.IsAbs(m.GetContainerPath()):
			return fmt.Errorf("%w: the path %q of a mount in the container must be absolute", errInvalid, m.GetContainerPath())
		case m.GetRecursiveReadOnly() && (!m.GetReadonly() || m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE):
			return fmt.Errorf("%w: a recursively read-only mount (%s) must be read-only and private", errInvalid, m.GetContainerPath())
		}
	}
	return nil
}
