package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/rooted"
)

// defaultDevices exist in every container (the list of the OCI runtime specification).
var defaultDevices = [...]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}

var defaultLinks = [...][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}, {"/proc/kcore", "core"},
}

func (t *tree) devices() error {
	dev, err := rooted.Dir(t.root, "/dev", 0o755, nil)
	if err != nil {
		return fmt.Errorf("opening /dev: %w", err)
	}
	defer unix.Close(dev)
	for _, l := range defaultLinks {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil {
			return fmt.Errorf("making link /dev/%s: %w", l[1], err)
		}
	}
	old := unix.Umask(0) // this thread's own since unshareFS
	defer unix.Umask(old)
	for _, d := range defaultDevices {
		var st unix.Stat_t
		if err := unix.Stat(d, &st); err != nil {
			return fmt.Errorf("reading device %s: %w", d, err)
		}
		if err := unix.Mknodat(dev, path.Base(d), unix.S_IFCHR|0o666, int(st.Rdev)); err != nil {
			return fmt.Errorf("making device %s: %w", d, err)
		}
	}
	list := t.spec.Devices
	if t.spec.Privileged {
		list = append(HostDevices(), list...)
	}
	for _, d := range list {
		if err := t.device(d); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) device(d Device) error {
	var st unix.Stat_t
	if err := unix.Stat(d.HostPath, &st); err != nil {
		return fmt.Errorf("reading device %s: %w", d.HostPath, err)
	}
	parent, err := rooted.Dir(t.root, path.Dir(d.Path), 0o755, nil)
	if err != nil {
		return fmt.Errorf("making the folder of device %s: %w", d.Path, err)
	}
	defer unix.Close(parent)
	err = unix.Mknodat(parent, path.Base(d.Path), st.Mode, int(st.Rdev))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making device %s: %w", d.Path, err)
	}
	if err == nil {
		err = unix.Fchownat(parent, path.Base(d.Path), int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// HostDevices lists the device nodes of the host, for privileged containers.
func HostDevices() []Device {
	var list []Device
	_ = filepath.WalkDir("/dev", func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return nil // a device that went away meanwhile
		}
		if e.IsDir() {
			switch p {
			case "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd":
				return filepath.SkipDir
			}
			return nil
		}
		if e.Type()&os.ModeDevice != 0 && p != "/dev/console" {
			list = append(list, Device{HostPath: p, Path: p, Access: "rwm"})
		}
		return nil
	})
	return list
}

// terminal opens a new pseudo terminal of the container's own devpts instance.
func terminal(root int, uid uint32) (master, slave *os.File, err error) {
	m, err := rooted.Open(root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the container's /dev/pts/ptmx: %w", err)
	}
	fail := func(err error) (*os.File, *os.File, error) { unix.Close(m); return nil, nil, err }
	var st unix.Stat_t
	if err := unix.Fstat(m, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		return fail(errors.New("the container's /dev/pts/ptmx is not a terminal multiplexer"))
	}
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return fail(fmt.Errorf("unlocking the terminal: %w", err))
	}
	s, err := openPeer(m)
	if err != nil {
		return fail(fmt.Errorf("opening the terminal's other end: %w", err))
	}
	if err := unix.Fchown(s, int(uid), -1); err != nil {
		unix.Close(s)
		return fail(fmt.Errorf("giving the terminal to user %d: %w", uid, err))
	}
	return os.NewFile(uintptr(m), "master"), os.NewFile(uintptr(s), "terminal"), nil
}

// openPeer asks for the slave of master with flags, which the ioctl takes as its argument itself.
func openPeer(master int) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// nullNumber is that of every null device.
var nullNumber = unix.Mkdev(1, 3)

// nullDevice makes a null device on a file system of its own, which goes with it.
func nullDevice() (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, fmt.Errorf("making a null device: %w", err) }
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail(err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	if err := unix.Mknodat(dir, "null", unix.S_IFCHR|0o666, int(nullNumber)); err != nil {
		return fail(err)
	}
	fd, err := unix.Openat(dir, "null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	if err := unix.Fchmod(fd, 0o666); err != nil { // whatever our umask
		unix.Close(fd)
		return fail(err)
	}
	return os.NewFile(uintptr(fd), "null"), nil
}

// ownNull is the null device of a container with this root; nil if it has none.
func ownNull(root int) *os.File {
	fd, err := rooted.Open(root, "/dev/null", unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != nullNumber {
		unix.Close(fd)
		return nil
	}
	_ = unix.SetNonblock(fd, false) // that was for what it might have been
	return os.NewFile(uintptr(fd), "null")
}
