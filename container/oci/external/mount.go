package external

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/oci/bundle"
	"knarr.dev/knarr/container/rooted"
)

// mount gives the calling thread a mount namespace and puts into it what the bundle
// refers to: the root file system, the images mounted as volumes, and copies of those
// mounts that the container shares with the host, or whose owners it sees shifted.
func (r *Runtime) mount(s *oci.Spec, dir, group string) (err error) {
	taken := map[int]int{}
	defer func() {
		for _, fd := range taken {
			unix.Close(fd)
		}
	}()
	for i, m := range s.Mounts {
		shifted := s.Users
		if !m.Mapped {
			shifted = nil
		}
		if m.Propagation == unix.MS_SHARED || shifted != nil { // taken before the namespace is a slave of the host's
			if taken[i], err = oci.MountCopy(m.Source, shifted); err != nil {
				delete(taken, i)
				return err
			}
		}
	}
	if err := r.unshare(); err != nil {
		return err
	}
	rootfs := s.Rootfs
	rootfs.Target = filepath.Join(dir, "rootfs")
	if err := oci.MountRoot(rootfs, s.Users); err != nil {
		return err
	}
	if err := s.Users.AsRoot(func() error { return makeDir(rootfs.Target, s.Cwd) }); err != nil {
		return fmt.Errorf("making working directory %s: %w", s.Cwd, err)
	}
	for i, m := range s.Mounts {
		at := bundle.Volume(dir, i)
		switch fd, ok := taken[i]; {
		case ok:
			delete(taken, i)
			if err := mountPoint(m.Source, at); err != nil {
				return err
			}
			err = oci.PlaceMount(fd, at)
		case len(m.Layers) > 0:
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			err = oci.MountLayers(m.Layers, at)
		}
		if err != nil {
			return err
		}
	}
	return r.describe(s, dir, group).Write(dir, s.Users.Host(0))
}

// describe leaves groups to programs that are not placed in theirs.
func (r *Runtime) describe(s *oci.Spec, dir, group string) *bundle.Config {
	if r.kind.placed {
		group = ""
	}
	return bundle.Of(s, r.host, dir, "rootfs", group)
}

// mountPoint makes at a folder or a file, as source is.
func mountPoint(source, at string) error {
	st, err := os.Stat(source)
	if err != nil {
		return err
	}
	if st.IsDir() {
		return os.MkdirAll(at, 0o755)
	}
	return os.WriteFile(at, nil, 0o600)
}

func makeDir(root, dir string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at, err := rooted.Dir(fd, dir, 0o755, nil)
	if err != nil {
		return err
	}
	return unix.Close(at)
}

// unshare gives the calling thread a mount namespace that follows the host's.
func (r *Runtime) unshare() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("making the mount namespace follow the host's: %w", err)
	}
	if r.kind.v1Only && hybrid() {
		if err := unix.Unmount(hybridV2, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("hiding %s from %s: %w", hybridV2, r.name, err)
		}
	}
	return nil
}

// hide keeps from the calling thread what the program must not see.
func (r *Runtime) hide() error {
	if !r.kind.v1Only || !hybrid() {
		return nil
	}
	return r.unshare()
}

// hybridV2 is where version 2 of control groups is mounted beside version 1.
const hybridV2 = "/sys/fs/cgroup/unified"

func hybrid() bool {
	var st unix.Statfs_t
	return unix.Statfs(hybridV2, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}
