// Package sandbox makes and pins the namespaces that a pod's containers share.
//
// A namespace lives as long as something refers to it. Here that is a bind
// mount of the namespace on a file, so no process is needed:
//
//	<dir>/net, ipc, uts, user   the pinned namespaces
//	<dir>/shm                   a tmpfs, the pod's /dev/shm
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/oci"
)

// Options say which namespaces a pod gets of its own.
type Options struct {
	Dir         string // made if missing; below a mount prepared by [Prepare]
	HostNetwork bool   // then the host's name is shared, too
	HostIPC     bool   // then the host's /dev/shm is shared, too
	Hostname    string
	Sysctls     map[string]string
	SharedSize  string // of /dev/shm, as tmpfs wants it; empty for 64m
	// Users, when not nil, is made too, and the others belong to it; Launcher makes
	// it. It goes with none of the host's namespaces.
	Users    *oci.Users
	Launcher *oci.Launcher
}

// Pod holds the paths of what was made; empty ones are the host's.
type Pod struct {
	Network, IPC, UTS string
	Users             string // with [Options.Users]
	SharedMemory      string
}

// Prepare makes dir a private mount of its own, so that what is mounted below
// it does not spread into the host's other mount namespaces. Repeating it is harmless.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	var here, above unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &here); err != nil {
		return fmt.Errorf("reading the mount of %s: %w", dir, err)
	}
	if err := unix.Statx(unix.AT_FDCWD, filepath.Dir(dir), 0, unix.STATX_MNT_ID, &above); err != nil {
		return fmt.Errorf("reading the mount of %s: %w", filepath.Dir(dir), err)
	}
	if here.Mnt_id == above.Mnt_id {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s on itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mount of %s private: %w", dir, err)
	}
	return nil
}

// Unprepare undoes [Prepare].
func Unprepare(dir string) error { return unmount(dir) }

// Create makes the namespaces and pins them. On failure nothing is left.
func Create(ctx context.Context, o Options) (pod Pod, err error) {
	if err := os.MkdirAll(o.Dir, 0o711); err != nil {
		return pod, fmt.Errorf("making the pod's folder: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Remove(o.Dir))
		}
	}()
	if err := errors.Join(ctx.Err(), o.checkSysctls()); err != nil {
		return pod, err
	}
	var flags int
	if !o.HostNetwork {
		flags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if !o.HostIPC {
		flags |= unix.CLONE_NEWIPC
		pod.SharedMemory = filepath.Join(o.Dir, "shm")
		if err := sharedMemory(pod.SharedMemory, o.SharedSize); err != nil {
			return pod, err
		}
	} else {
		pod.SharedMemory = "/dev/shm"
	}
	if flags == 0 {
		return pod, oci.OnThread(func() error { return oci.SetSysctls(o.Sysctls) })
	}
	if o.Users != nil {
		err = o.Launcher.NewNamespaces(ctx, o.Users, uintptr(flags), func(pid int) error { return pod.pin(o.Dir, fmt.Sprintf("/proc/%d", pid), flags|unix.CLONE_NEWUSER) })
		if err != nil {
			return pod, err
		}
	}
	err = oci.OnThread(func() error {
		if o.Users != nil {
			if err := oci.Enter(oci.Namespaces{Network: pod.Network, IPC: pod.IPC, UTS: pod.UTS}); err != nil {
				return err
			}
		} else if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("making the pod's namespaces: %w", err)
		}
		if !o.HostNetwork {
			if o.Hostname != "" {
				if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
					return fmt.Errorf("setting the host name %q: %w", o.Hostname, err)
				}
			}
			if err := loopbackUp(); err != nil {
				return err
			}
		}
		if err := oci.SetSysctls(o.Sysctls); err != nil {
			return err
		}
		if o.Users != nil {
			return nil // pinned above
		}
		return pod.pin(o.Dir, "/proc/thread-self", flags)
	})
	return pod, err
}

// pin keeps the namespaces of flags that the process or thread at proc is in.
func (p *Pod) pin(dir, proc string, flags int) error {
	for _, n := range []struct {
		name string
		flag int
		path *string
	}{
		{"net", unix.CLONE_NEWNET, &p.Network}, {"uts", unix.CLONE_NEWUTS, &p.UTS}, {"ipc", unix.CLONE_NEWIPC, &p.IPC},
		{"user", unix.CLONE_NEWUSER, &p.Users},
	} {
		if flags&n.flag == 0 {
			continue
		}
		path := filepath.Join(dir, n.name)
		if err := pin(proc+"/ns/"+n.name, path); err != nil {
			return err
		}
		*n.path = path
	}
	return nil
}

// Find returns the paths of a pod made by an earlier process.
func Find(dir string) Pod {
	pinned := func(name string) string {
		p := filepath.Join(dir, name)
		var st unix.Statfs_t
		if unix.Statfs(p, &st) == nil && st.Type == unix.NSFS_MAGIC {
			return p
		}
		return ""
	}
	pod := Pod{Network: pinned("net"), IPC: pinned("ipc"), UTS: pinned("uts"), Users: pinned("user"), SharedMemory: filepath.Join(dir, "shm")}
	if pod.IPC == "" {
		pod.SharedMemory = "/dev/shm"
	}
	return pod
}

// ReleaseNetwork lets go of the pod's network namespace.
func ReleaseNetwork(dir string) error { return unpin(filepath.Join(dir, "net")) }

// Remove lets go of everything in dir and removes it. Repeating it is harmless.
func Remove(dir string) error {
	var errs []error
	for _, n := range []string{"net", "uts", "ipc", "user"} {
		errs = append(errs, unpin(filepath.Join(dir, n)))
	}
	errs = append(errs, unmount(filepath.Join(dir, "shm")))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func sharedMemory(dir, size string) error {
	if size == "" {
		size = "64m"
	}
	if err := os.MkdirAll(dir, 0o1777); err != nil {
		return err
	}
	err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size="+size)
	if err != nil {
		return fmt.Errorf("mounting the pod's shared memory: %w", err)
	}
	return nil
}

func pin(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("pinning a namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pinning %s on %s: %w", ns, path, err)
	}
	return nil
}

func unpin(path string) error {
	if err := unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// unmount removes all mounts on path; none is no error.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return &os.PathError{Op: "unmounting", Path: path, Err: err}
		}
	}
}

// loopbackUp brings lo up in the calling thread's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for lo: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(req)))
	if errno != 0 {
		return fmt.Errorf("bringing lo up: %w", errno)
	}
	return nil
}
