package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/rooted"
)

// ttyGroup owns terminals, by a convention of all distributions.
const ttyGroup = 5

// tree puts together a container's file system in the mount namespace of the
// calling thread.
type tree struct {
	spec  *Spec
	root  int // the overlay's root
	users int // the user namespace, or -1
}

// source is a detached copy of a host path, taken before the thread leaves the
// host's mount namespace, so that shared mounts stay in their peer group.
type source struct {
	fd  int
	dir bool
}

func cloneSource(host string, recursive bool) (source, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, host, flags)
	if err != nil {
		return source{}, fmt.Errorf("taking a copy of the mount at %s: %w", host, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return source{}, fmt.Errorf("reading %s: %w", host, err)
	}
	return source{fd, st.Mode&unix.S_IFMT == unix.S_IFDIR}, nil
}

// setLowers names an overlay's layers, the topmost first.
func setLowers(set func(key, value string) error, lowers []string) error {
	for _, l := range lowers {
		if err := set("lowerdir+", l); err != nil { // before 6.7: one option of at most 256 bytes
			if set("lowerdir", strings.Join(lowers, ":")) == nil {
				return nil
			}
			return err
		}
	}
	return nil
}

// mergeLayers is a detached, read-only view of layers, the topmost first.
func mergeLayers(layers []string) (source, error) {
	if len(layers) == 1 { // an overlay without a writable folder wants two
		return cloneSource(layers[0], false)
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return source{}, fmt.Errorf("opening the overlay file system: %w", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) error { return unix.FsconfigSetString(fs, key, value) }
	if err := setLowers(set, layers); err != nil {
		return source{}, fmt.Errorf("naming %d layers of an image to mount: %w%s", len(layers), err, fsMessage(fs))
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return source{}, fmt.Errorf("mounting %d layers of an image: %w%s", len(layers), err, fsMessage(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return source{}, fmt.Errorf("mounting an image: %w", err)
	}
	return source{fd, true}, nil
}

// overlay mounts the root file system detached. The writable folder is
// volatile: it is never mounted a second time, and a synchronous unmount of it
// would stall the machine for nothing.
func overlay(r Rootfs) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening the overlay file system: %w", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("overlay option %s=%s: %w%s", key, value, err, fsMessage(fs))
		}
		return nil
	}
	errs := []error{setLowers(set, r.Lowers)}
	errs = append(errs, set("upperdir", r.Upper), set("workdir", r.Work), set("index", "off"), set("metacopy", "off"))
	if err := errors.Join(errs...); err != nil {
		return -1, err
	}
	_ = unix.FsconfigSetFlag(fs, "volatile") // from 5.10
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mounting the overlay of %d layers: %w%s", len(r.Lowers), err, fsMessage(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mounting the overlay: %w", err)
	}
	return fd, nil
}

// MountRoot mounts a root file system on its Target, in the mount namespace of the
// calling thread. For users, if not nil, its layers appear with shifted owners, here and
// to what is mounted from them later.
func MountRoot(r Rootfs, users *Users) error {
	mount := func() error {
		fd, err := overlay(r)
		if err != nil {
			return err
		}
		return PlaceMount(fd, r.Target)
	}
	if users == nil {
		return mount()
	}
	return users.with(func(ns int) error {
		if err := mapFolders(r.Mapped, ns); err != nil {
			return err
		}
		return users.AsRoot(mount)
	})
}

// MountLayers mounts a read-only view of layers, the topmost first, on the host
// folder target, in the mount namespace of the calling thread.
func MountLayers(layers []string, target string) error {
	s, err := mergeLayers(layers)
	if err != nil {
		return err
	}
	return PlaceMount(s.fd, target)
}

// MountCopy is a detached copy of what is mounted at host, which [PlaceMount] puts
// elsewhere. It stays a peer of the original, in other mount namespaces too. With users,
// if not nil, its files' owners are shifted.
func MountCopy(host string, users *Users) (int, error) {
	s, err := cloneSource(host, true)
	if err != nil || users == nil {
		return s.fd, err
	}
	if err := users.with(func(ns int) error { return shift(s.fd, ns, host) }); err != nil {
		unix.Close(s.fd)
		return -1, err
	}
	return s.fd, nil
}

// PlaceMount puts a detached mount on the host path target and closes it.
func PlaceMount(fd int, target string) error {
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting on %s: %w", target, err)
	}
	return nil
}

// fsMessage reads the kernel's explanation, if there is one.
func fsMessage(fs int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}

// newFS mounts a fresh file system on target.
func (t *tree) newFS(kind, target string, attr int, options ...string) error {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("opening file system %s: %w", kind, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		key, value, ok := strings.Cut(o, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return fmt.Errorf("option %s of %s: %w", o, kind, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("making file system %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return fmt.Errorf("mounting file system %s: %w", kind, err)
	}
	return t.attach(source{fd, true}, target)
}

// attach moves a detached mount onto target below the root and closes it.
func (t *tree) attach(s source, target string) error {
	defer unix.Close(s.fd)
	var at int
	var err error
	if s.dir {
		at, err = rooted.Dir(t.root, target, 0o755, nil)
	} else {
		at, err = rooted.File(t.root, target)
	}
	if err != nil {
		return fmt.Errorf("making mount point %s: %w", target, err)
	}
	defer unix.Close(at)
	if err := unix.MoveMount(s.fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting on %s: %w", target, err)
	}
	return nil
}

func (t *tree) bind(s source, m Mount) error {
	if m.Mapped && t.users >= 0 {
		if err := shift(s.fd, t.users, m.Source); err != nil {
			unix.Close(s.fd)
			return err
		}
	}
	propagation := m.Propagation
	if propagation == 0 {
		propagation = unix.MS_PRIVATE
	}
	recursive := uint(unix.AT_EMPTY_PATH | unix.AT_RECURSIVE)
	if propagation != unix.MS_SHARED { // a clone of a shared mount is its peer already
		if err := unix.MountSetattr(s.fd, "", recursive, &unix.MountAttr{Propagation: propagation}); err != nil {
			return fmt.Errorf("setting the propagation of %s: %w", m.Source, err)
		}
	}
	attr := unix.MountAttr{Attr_set: m.Flags}
	if m.ReadOnly || m.RecursiveReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if attr.Attr_set != 0 {
		how := uint(unix.AT_EMPTY_PATH)
		if m.RecursiveReadOnly {
			how = recursive
		}
		if err := unix.MountSetattr(s.fd, "", how, &attr); err != nil {
			return fmt.Errorf("making %s read-only: %w", m.Target, err)
		}
	}
	return t.attach(s, m.Target)
}

// defaults mounts what every container has, save what the spec mounts itself.
func (t *tree) defaults(cgroups []source) error {
	taken := map[string]bool{}
	for _, m := range t.spec.Mounts {
		taken[path.Clean(m.Target)] = true
	}
	if !taken["/proc"] {
		fd, err := rooted.Dir(t.root, "/proc", 0o755, nil)
		if err != nil {
			return fmt.Errorf("making /proc: %w", err)
		}
		unix.Close(fd)
	}
	if !taken["/sys"] {
		attr := noSetattr
		if !t.spec.Privileged {
			attr |= unix.MOUNT_ATTR_RDONLY
		}
		if err := t.newFS("sysfs", "/sys", attr); err != nil {
			return err
		}
		if err := t.cgroups(cgroups, attr); err != nil {
			return err
		}
	}
	if taken["/dev"] {
		return nil
	}
	steps := []struct {
		kind, target string
		attr         int
		options      []string
	}{
		{"tmpfs", "/dev", unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_STRICTATIME, []string{"mode=755", "size=65536k"}},
		{"devpts", "/dev/pts", unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, []string{"newinstance", "ptmxmode=0666", "mode=0620", fmt.Sprint("gid=", t.spec.Users.Host(ttyGroup))}},
		{"mqueue", "/dev/mqueue", noSetattr, nil},
	}
	for _, s := range steps {
		if !taken[s.target] {
			if err := t.newFS(s.kind, s.target, s.attr, s.options...); err != nil {
				return err
			}
		}
	}
	return t.devices()
}

// freeze makes the mount at target read-only, without those on it.
func (t *tree) freeze(target string) error {
	fd, err := rooted.Open(t.root, target, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("making %s read-only: %w", target, err)
	}
	return nil
}

func (t *tree) cgroups(sources []source, attr int) (err error) {
	if len(sources) == 0 {
		return nil
	}
	if t.spec.CgroupMounts[0].Target != "/sys/fs/cgroup" { // v1: a folder of hierarchies
		if err := t.newFS("tmpfs", "/sys/fs/cgroup", noSetattr, "mode=755", "size=64k"); err != nil {
			return err
		}
		defer func() {
			if err == nil && attr&unix.MOUNT_ATTR_RDONLY != 0 {
				err = t.freeze("/sys/fs/cgroup")
			}
		}()
	}
	for i, m := range t.spec.CgroupMounts {
		src := sources[i]
		sources[i].fd = -1 // bind closes it
		err := t.bind(src, Mount{Source: m.Source, Target: m.Target, Flags: uint64(attr)})
		if err != nil {
			return err
		}
	}
	return nil
}

// lockRoot makes the overlay itself read-only; mounts on it stay as they are.
func (t *tree) lockRoot() error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(t.root, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("making the root file system read-only: %w", err)
	}
	return nil
}

// build runs on the container's thread. It returns the overlay's root.
func build(s *Spec, enter func() error) (int, error) {
	sources, err := takeSources(s)
	if err != nil {
		return -1, err
	}
	defer sources.close()
	if err := enter(); err != nil {
		return -1, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("making the mount namespace private: %w", err)
	}
	t := &tree{spec: s, users: -1}
	if s.Users != nil {
		if t.users, err = unix.Open(s.Users.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return -1, &os.PathError{Op: "opening the user namespace", Path: s.Users.Path, Err: err}
		}
		defer unix.Close(t.users)
		if err := mapFolders(s.Rootfs.Mapped, t.users); err != nil {
			return -1, err
		}
		restore, err := actAs(s.Users)
		if err != nil {
			return -1, err
		}
		defer restore()
	}
	if t.root, err = overlay(s.Rootfs); err != nil {
		return -1, err
	}
	if err := t.fill(sources); err != nil {
		unix.Close(t.root)
		return -1, err
	}
	return t.root, nil
}

// fill places the root and mounts everything in it.
func (t *tree) fill(from *sources) error {
	s := t.spec
	at, err := unix.Open(s.Rootfs.Target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "opening the mount point", Path: s.Rootfs.Target, Err: err}
	}
	defer unix.Close(at)
	if err := unix.MoveMount(t.root, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("placing the root file system: %w", err)
	}
	if err := t.defaults(from.cgroups); err != nil {
		return err
	}
	for i, m := range from.mounts {
		src := from.binds[i]
		if len(m.Layers) > 0 {
			if src, err = mergeLayers(m.Layers); err != nil {
				return err
			}
		}
		from.binds[i].fd = -1 // bind closes it
		if err := t.bind(src, m); err != nil {
			return err
		}
	}
	cwd, err := rooted.Dir(t.root, s.Cwd, 0o755, nil)
	if err != nil {
		return fmt.Errorf("making working directory %s: %w", s.Cwd, err)
	}
	unix.Close(cwd)
	if s.ReadonlyRootfs {
		return t.lockRoot()
	}
	return nil
}

// sources are detached copies of what is mounted from the host.
type sources struct {
	cgroups []source
	mounts  []Mount  // what is to be mounted, in this order
	binds   []source // and from where; fd -1: from layers
}

// takeSources copies the host's mounts, before the thread leaves their namespace.
func takeSources(s *Spec) (*sources, error) {
	from := &sources{mounts: s.Mounts}
	if s.SharedMemory != "" {
		from.mounts = append([]Mount{{Source: s.SharedMemory, Target: "/dev/shm"}}, s.Mounts...)
	}
	for _, m := range s.CgroupMounts {
		src, err := cloneSource(m.Source, false)
		if err != nil {
			from.close()
			return nil, err
		}
		from.cgroups = append(from.cgroups, src)
	}
	for _, m := range from.mounts {
		src := source{fd: -1}
		if len(m.Layers) == 0 {
			var err error
			if src, err = cloneSource(m.Source, true); err != nil {
				from.close()
				return nil, err
			}
		}
		from.binds = append(from.binds, src)
	}
	return from, nil
}

// close lets go of what was not mounted.
func (s *sources) close() {
	for _, list := range [][]source{s.cgroups, s.binds} {
		for _, src := range list {
			if src.fd >= 0 {
				unix.Close(src.fd)
			}
		}
	}
}
