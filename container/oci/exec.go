package oci

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ExecSpec is a further process in a running container.
type ExecSpec struct {
	ID          string // of the container
	Args, Env   []string
	Cwd         string
	Target      *Child // the container's first process
	TTY         bool
	OOMScoreAdj int
	Users       *Users // as in [Spec]
	Process
}

// Exec runs a further process in the container of spec.Target: its namespaces,
// its root, its cgroups. With TTY the child's Console is the terminal's master.
func (l *Launcher) Exec(ctx context.Context, spec *ExecSpec, stdio Stdio, cg Cgroup) (Command, error) {
	child, err := l.exec(ctx, spec, "", stdio, cg)
	if err != nil {
		return nil, err // a nil Child in an interface would not be nil
	}
	return child, nil
}

// exec runs the file program, empty: that of the first argument.
func (l *Launcher) exec(ctx context.Context, spec *ExecSpec, program string, stdio Stdio, cg Cgroup) (*Child, error) {
	cfg := initConfig{
		flags: flagSetns | flagJoin, cwd: spec.Cwd, program: program,
		setns: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
	}
	l.identity(&cfg, &spec.Process, spec.TTY)
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", spec.Target.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the root of process %d: %w", spec.Target.PID, err)
	}
	defer unix.Close(root)
	null := ownNull(root)
	defer null.Close()
	var console *os.File
	if spec.TTY {
		master, slave, err := terminal(root, spec.Users.Host(spec.UID))
		if err != nil {
			return nil, err
		}
		defer slave.Close()
		console, stdio = master, Stdio{slave, slave, slave}
	}
	// A duplicate, because os.File.Fd would make the shared pidfd blocking.
	target, err := dupFile(spec.Target.pidfd)
	if err != nil {
		return nil, err
	}
	defer unix.Close(target)
	var child *Child
	err = OnThread(func() (err error) {
		child, err = l.spawn(ctx, &job{
			args: spec.Args, env: spec.Env, cfg: &cfg, stdio: stdio, null: null, extra: target, users: spec.Users, cgroup: cg, oomScore: spec.OOMScoreAdj,
		})
		return err
	})
	if err != nil {
		if console != nil {
			console.Close()
		}
		return nil, err
	}
	child.Console = console
	return child, nil
}

// Pause starts a process that does nothing but hold a PID namespace and reap
// what is orphaned in it. Pods that share their processes need one. It sees no files:
// the pod's containers see what it does. The namespace belongs to the host, so that
// nobody in it can mount a view of its processes, or with theirs to users, if there are
// any: others than the host's root can join it then.
func (l *Launcher) Pause(ctx context.Context, ns Namespaces, users *Users, theirs bool, cg Cgroup) (*Child, error) {
	j := &job{args: []string{"pause"}, cfg: &initConfig{flags: flagPause | flagPivot}, users: users, cgroup: cg, oomScore: -998}
	if users != nil && theirs {
		j.cfg.flags |= flagOwn
	} else {
		j.flags = unix.CLONE_NEWPID
	}
	var child *Child
	err := OnThread(func() error {
		if err := unshareFS(); err != nil {
			return fmt.Errorf("preparing a thread: %w", err)
		}
		if err := enter(ns); err != nil {
			return err
		}
		root, err := emptyRoot()
		if err != nil {
			return err
		}
		defer unix.Close(root)
		j.extra = root
		child, err = l.spawn(ctx, j)
		return err
	})
	return child, err
}

// emptyRoot mounts an empty folder in the mount namespace of the calling thread, on one
// that every machine has, and opens it.
func emptyRoot() (int, error) {
	const at = "/dev"
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("making the mount namespace private: %w", err)
	}
	if err := unix.Mount("empty", at, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k,nr_inodes=2"); err != nil {
		return -1, fmt.Errorf("mounting an empty folder: %w", err)
	}
	root, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening an empty folder: %w", err)
	}
	return root, nil
}

func dupFile(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if cerr := raw.Control(func(u uintptr) { fd, err = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}
