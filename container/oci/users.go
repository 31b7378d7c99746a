package oci

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Users is a user namespace in which one range of the host's users appears as
// the users from 0 on; groups alike.
type Users struct {
	Path   string // of the pinned namespace; empty before it is made
	HostID uint32 // of user and group 0
	Size   uint32
}

// Host is the host's number of a user or group of the namespace. That of a nil
// Users is the same.
func (u *Users) Host(id uint32) uint32 {
	if u == nil {
		return id
	}
	return u.HostID + id
}

// NewNamespaces makes a user namespace and those of flags (unix.CLONE_NEW*),
// which belong to it, and calls pin with the number of a process in them. What
// pin has not pinned is gone when NewNamespaces returns. A process is needed
// because a program with threads cannot make a user namespace for itself.
func (l *Launcher) NewNamespaces(ctx context.Context, u *Users, flags uintptr, pin func(pid int) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	conf, err := blobFile("knarr-config", (&initConfig{flags: flagPause}).encode())
	if err != nil {
		return err
	}
	defer conf.Close()
	// The init program waits on the reading end and ends with the writing one.
	wait, ours, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer wait.Close()
	defer ours.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(u.HostID), Size: int(u.Size)}}
	pidfd := -1
	null := l.null.Fd()
	pid, err := syscall.ForkExec(programPath, []string{"namespaces"}, &syscall.ProcAttr{
		Files: []uintptr{null, null, null, conf.Fd(), wait.Fd(), null, null, l.init.Fd()},
		Sys: &syscall.SysProcAttr{
			Cloneflags: flags | unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true, PidFD: &pidfd,
		},
	})
	if err != nil {
		return fmt.Errorf("making a user namespace: %w: is user.max_user_namespaces 0?", err)
	}
	defer unix.Close(pidfd)
	defer discard(pidfd)
	return pin(pid)
}

// idmap shows a detached mount's files with their owners as the namespace at fd has them.
func idmap(mount, fd int) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(fd)}
	return unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr)
}

// shift is idmap for a copy of the mount at host.
func shift(mount, fd int, host string) error {
	if err := idmap(mount, fd); err != nil {
		return fmt.Errorf("showing %s to a user namespace: %w: its file system must support id-mapped mounts", host, err)
	}
	return nil
}

// with opens the namespace for use.
func (u *Users) with(use func(ns int) error) error {
	ns, err := unix.Open(u.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "opening the user namespace", Path: u.Path, Err: err}
	}
	defer unix.Close(ns)
	return use(ns)
}

// TryUsers tells why user namespaces, or shifted views of the folder, cannot be had.
func (l *Launcher) TryUsers(ctx context.Context, folder string) error {
	return l.NewNamespaces(ctx, &Users{HostID: 1 << 16, Size: 1 << 16}, 0, func(pid int) error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
		if err != nil {
			return fmt.Errorf("opening a user namespace: %w", err)
		}
		defer ns.Close()
		fd, err := unix.OpenTree(unix.AT_FDCWD, folder, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("taking a copy of the mount at %s: %w", folder, err)
		}
		defer unix.Close(fd)
		return idmap(fd, int(ns.Fd()))
	})
}

// mapFolders puts shifted views of host folders in their own places, in the mount
// namespace of the calling thread.
func mapFolders(folders []string, ns int) error {
	for _, f := range folders {
		fd, err := unix.OpenTree(unix.AT_FDCWD, f, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("taking a copy of the mount at %s: %w", f, err)
		}
		if err = shift(fd, ns, f); err == nil {
			if err = unix.MoveMount(fd, "", unix.AT_FDCWD, f, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				err = fmt.Errorf("mounting on %s: %w", f, err)
			}
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// AsRoot calls f, on a thread of [OnThread]'s, with the namespace's root as the owner of what
// it makes. Without a namespace it is the host's.
func (u *Users) AsRoot(f func() error) error {
	if u == nil {
		return f()
	}
	restore, err := actAs(u)
	if err != nil {
		return err
	}
	defer restore()
	return f()
}

// actAs lets the calling thread make files as the namespace's root, with all of
// its own capabilities. The returned function ends that.
func actAs(u *Users) (func(), error) {
	const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP: another file user does not cost capabilities
	bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits|noSetuidFixup), 0, 0, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("keeping capabilities as another file user: %w", err)
	}
	set := func(uid, gid uint32) {
		// Neither call reports a failure; with CAP_SETUID and CAP_SETGID there is none.
		_, _ = unix.SetfsgidRetGid(int(gid))
		_, _ = unix.SetfsuidRetUid(int(uid))
	}
	set(u.HostID, u.HostID)
	return func() {
		set(0, 0)
		_ = unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits), 0, 0, 0)
	}, nil
}
