package oci

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Launcher starts processes in containers. It is safe for concurrent use.
type Launcher struct {
	init    *os.File
	null    *os.File
	caps    uint64 // what this process may hand on
	nofile  uint64
	bundles string

	mu    sync.Mutex
	exits *exits // nil until it is needed
}

// NewLauncher prepares the program that every container begins with. bundles is the
// folder in which containers with hooks have their bundles, named as they are.
func NewLauncher(bundles string) (*Launcher, error) {
	initFile, err := program("knarr-init", initProgram)
	if err != nil {
		return nil, err
	}
	null, err := nullDevice()
	if err != nil {
		initFile.Close()
		return nil, err
	}
	caps, err := boundingSet()
	if err != nil {
		return nil, err
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return nil, fmt.Errorf("reading the limit of open files: %w", err)
	}
	return &Launcher{init: initFile, null: null, caps: caps, nofile: lim.Max, bundles: bundles}, nil
}

// Close releases the launcher; processes it started are not touched.
func (l *Launcher) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.exits != nil {
		err = l.exits.close()
	}
	return errors.Join(err, l.init.Close(), l.null.Close())
}

// Follow sees to it that the exit code of c, which runs and was not started by this process,
// will be known. Without what it needs on kernels before 6.15 it is [UnknownExit], and the
// error says what that is.
func (l *Launcher) Follow(c *Child) error {
	if pidfdsTell() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exits == nil {
		e, err := listenExits()
		if err != nil {
			return err
		}
		l.exits = e
	}
	c.exit = l.exits.follow(c.PID)
	return nil
}

// pidfdsTell: the kernel keeps an exit code for who holds the pidfd.
func pidfdsTell() bool {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 15)
}

// Null is a null device that is not the host's: a container could change the owner and
// mode of that by a descriptor it is given.
func (l *Launcher) Null() *os.File { return l.null }

// Stdio are the descriptors a process is given. Nil means /dev/null.
type Stdio struct {
	In, Out, Err *os.File
}

// Start runs the container's first process. With spec.TTY the process gets a
// new terminal instead of stdio and Child.Console is its master.
// Errors of the program itself are of type [StartError].
func (l *Launcher) Start(ctx context.Context, spec *Spec, stdio Stdio, cg Cgroup) (*Child, error) {
	cfg := initConfig{
		flags: flagPivot, cwd: spec.Cwd, masked: spec.MaskedPaths, readonly: spec.ReadonlyPaths,
	}
	if spec.Namespaces.Cgroup {
		cfg.flags |= flagCgroupNS
	}
	for _, m := range spec.Mounts {
		if m.Target == "/proc" {
			cfg.flags |= flagProc // inverted below
		}
	}
	cfg.flags ^= flagProc
	l.identity(&cfg, &spec.Process, spec.TTY)
	var h *hooks
	tree := spec
	if spec.Hooks != nil {
		h = &hooks{Hooks: spec.Hooks, l: l, spec: spec, cg: cg}
		cfg.flags |= h.flags()
		if h.beforeRoot() {
			open := *spec
			open.ReadonlyRootfs = false // until they have been run
			tree = &open
		}
	}

	var child *Child
	err := OnThread(func() error {
		if err := unshareFS(); err != nil {
			return fmt.Errorf("preparing a thread: %w", err)
		}
		// The process namespace is left to the init program: see join_processes there.
		ns := spec.Namespaces
		ns.PID = ""
		root, err := build(tree, func() error { return enter(ns) })
		if err != nil {
			return err
		}
		defer unix.Close(root)
		var console *os.File
		if spec.TTY {
			master, slave, err := terminal(root, spec.Users.Host(spec.UID))
			if err != nil {
				return err
			}
			console = master
			defer slave.Close()
			stdio = Stdio{slave, slave, slave}
		}
		null := ownNull(root)
		defer null.Close()
		j := &job{null: null, args: spec.Args, env: spec.Env, cfg: &cfg, stdio: stdio, extra: root, users: spec.Users, cgroup: cg, oomScore: spec.OOMScoreAdj}
		if h != nil {
			h.root, j.paused = root, h.run
		}
		switch spec.Namespaces.PID {
		case "":
		case Private:
			j.flags = unix.CLONE_NEWPID
		default:
			cfg.flags |= flagJoin
			if j.processes, err = os.Open(spec.Namespaces.PID); err != nil {
				return fmt.Errorf("opening a process namespace: %w", err)
			}
			defer j.processes.Close()
		}
		child, err = l.spawn(ctx, j)
		if err != nil {
			if console != nil {
				console.Close()
			}
			return err
		}
		child.Console = console
		return nil
	})
	if err == nil && h != nil {
		if err := h.started(ctx, child); err != nil {
			return nil, errors.Join(err, child.discard())
		}
	}
	return child, err
}

// identity fills in the part of cfg that Start and Exec have in common.
func (l *Launcher) identity(cfg *initConfig, p *Process, tty bool) {
	cfg.uid, cfg.gid, cfg.groups, cfg.filter = p.UID, p.GID, p.Groups, p.Seccomp
	cfg.caps, cfg.nofile = l.Permitted(p.Caps), l.OpenFiles()
	if p.NoNewPrivs {
		cfg.flags |= flagNoNewPrivs
	}
	if tty {
		cfg.flags |= flagTTY
	}
}

// enter takes the calling thread out of the host's mount namespace and into
// the pod's other ones.
func enter(ns Namespaces) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	return Enter(ns)
}

// Enter puts the calling thread, one of [OnThread]'s, into namespaces. A PID
// namespace is entered by the thread's children alone.
func Enter(ns Namespaces) error {
	for _, n := range []struct {
		path string
		kind int
	}{{ns.Network, unix.CLONE_NEWNET}, {ns.IPC, unix.CLONE_NEWIPC}, {ns.UTS, unix.CLONE_NEWUTS}, {ns.PID, unix.CLONE_NEWPID}} {
		if n.path == "" || n.path == Private {
			continue
		}
		if err := setns(n.path, n.kind); err != nil {
			return err
		}
	}
	return nil
}

func setns(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "opening namespace", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kind); err != nil {
		return &os.PathError{Op: "entering namespace", Path: path, Err: err}
	}
	return nil
}

// Descriptors of the init program, as init.c has them. The program is among those
// that the child is given: at any other number a child's preparations could
// overwrite it.
const (
	extraFD     = 5
	usersFD     = 6
	programPath = "/proc/self/fd/7"
)

// job is one run of the init program.
type job struct {
	args, env []string
	cfg       *initConfig
	stdio     Stdio
	extra     int    // the root's or the target's descriptor, or -1
	users     *Users // nil: the host's
	flags     uintptr
	cgroup    Cgroup // nil: none is joined
	oomScore  int
	processes *os.File // the process namespace to join, if cfg says so
	null      *os.File // for what stdio has not; nil: the launcher's
	// paused is called when the process waits at a moment that cfg names.
	paused func(ctx context.Context, moment int32, child *Child) error
}

// program is what is executed, as whoever asked for it knows it.
func (j *job) program() string {
	if j.cfg.program != "" {
		return j.cfg.program
	}
	return j.args[0]
}

// spawn clones the init program and follows it until the real program runs. It is called
// on one of [OnThread]'s threads.
func (l *Launcher) spawn(ctx context.Context, j *job) (*Child, error) {
	if len(j.args) == 0 {
		return nil, errors.New("no command given: set one in the pod or in the image")
	}
	if j.users != nil {
		j.cfg.flags |= flagUser
	}
	conf, err := blobFile("knarr-config", j.cfg.encode())
	if err != nil {
		return nil, err
	}
	defer conf.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "sync")
	_ = unix.SetNonblock(pair[0], true)
	ours := os.NewFile(uintptr(pair[0]), "sync")
	defer ours.Close()
	defer theirs.Close()

	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: "", Env: j.env,
		Files: []uintptr{l.or(j.stdio.In, j.null), l.or(j.stdio.Out, j.null), l.or(j.stdio.Err, j.null), conf.Fd(), theirs.Fd(), uintptr(j.extra), l.null.Fd(), l.init.Fd(), l.or(j.processes, nil)},
		Sys:   &syscall.SysProcAttr{Cloneflags: j.flags, PidFD: &pidfd, Setpgid: j.cfg.flags&(flagJoin|flagOwn) != 0},
	}
	if j.extra < 0 {
		attr.Files[extraFD] = l.null.Fd()
	}
	if j.users != nil {
		ns, err := os.Open(j.users.Path)
		if err != nil {
			return nil, fmt.Errorf("opening the user namespace: %w", err)
		}
		defer ns.Close()
		attr.Files[usersFD] = ns.Fd()
	}
	if j.cgroup != nil {
		fd, release, err := j.cgroup.Open()
		if err != nil {
			return nil, err
		}
		defer release()
		if fd >= 0 {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
		}
	}
	pid, placed, err := j.fork(attr)
	if err != nil {
		return nil, fmt.Errorf("cloning the container's process: %w", err)
	}
	theirs.Close()
	child, err := newChild(pid, pidfd)
	if err != nil {
		discard(pidfd)
		unix.Close(pidfd)
		return nil, err
	}
	if j.cgroup != nil && !placed {
		err = j.cgroup.Join(pid)
	}
	if err == nil {
		err = follow(ctx, child, ours, j)
	}
	if attr.Sys.Setpgid && child.PID == pid { // without having been replaced
		if err == nil {
			err = errors.New("the container's process was killed while it was being started")
		}
		discardGroup(pid)
		return nil, errors.Join(err, child.Close())
	}
	if err != nil {
		return nil, errors.Join(err, child.discard())
	}
	return child, nil
}

// fork clones the init program in its control group, if that has room for a process more;
// else it has to be moved there. Moving one makes the kernel wait until every thread of
// the machine has been seen in a safe place, twenty milliseconds where it is at rest,
// so that it is the second choice.
func (j *job) fork(attr *syscall.ProcAttr) (pid int, placed bool, err error) {
	if j.cgroup != nil {
		leave, err := j.cgroup.JoinThread()
		if err != nil {
			return 0, false, err
		}
		pid, err = syscall.ForkExec(programPath, j.args, attr)
		_ = leave() // else the thread leaves when it ends
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOMEM) {
			return pid, true, err
		}
	}
	pid, err = syscall.ForkExec(programPath, j.args, attr)
	return pid, false, err
}

// follow is the parent's side of the protocol drawn in c/init.c.
func follow(ctx context.Context, child *Child, sync *os.File, j *job) error {
	// Best effort: without CAP_SYS_RESOURCE the score can only be raised.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", child.PID), []byte(strconv.Itoa(j.oomScore)), 0)
	stop := context.AfterFunc(ctx, func() { _ = sync.Close() })
	defer stop()
	for {
		ended, stage, detail, err := release(sync)
		if err != nil {
			return fmt.Errorf("waiting for the container's process: %w", errors.Join(err, ctx.Err()))
		}
		switch {
		case ended:
			return nil
		case stage == stageReplaced:
			err = child.replace(int(detail))
		case stage == stagePause && j.paused != nil:
			err = j.paused(ctx, detail, child)
		default:
			return startError(j.program(), stage, detail)
		}
		if err != nil {
			return err
		}
	}
}

// release lets the process go on and reads what it says next. ended: it is the program
// now, and says no more.
func release(sync *os.File) (ended bool, stage uint32, detail int32, err error) {
	if _, err := sync.Write([]byte{1}); err != nil {
		return false, 0, 0, fmt.Errorf("releasing it: %w", err)
	}
	var answer [8]byte
	switch n, err := sync.Read(answer[:]); {
	case errors.Is(err, io.EOF) || err == nil && n == 0:
		return true, 0, 0, nil
	case err != nil:
		return false, 0, 0, err
	case n != len(answer):
		return false, 0, 0, errors.New("it sent a malformed answer")
	}
	le := binary.LittleEndian
	return false, le.Uint32(answer[:4]), int32(le.Uint32(answer[4:])), nil
}

// or is the first of the files that is there, and a null device if none is.
func (l *Launcher) or(files ...*os.File) uintptr {
	for _, f := range files {
		if f != nil {
			return f.Fd()
		}
	}
	return l.null.Fd()
}

// CheckProgram tells whether the program that every container begins with is what
// it was, and cannot be changed.
func CheckProgram(l *Launcher) error {
	const want = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	seals, err := unix.FcntlInt(l.init.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("reading the seals of the init program: %w", err)
	}
	if seals&want != want {
		return fmt.Errorf("the init program has the seals %#x, not %#x", seals, want)
	}
	now := make([]byte, len(initProgram)+1)
	if n, err := l.init.ReadAt(now, 0); n != len(initProgram) || !bytes.Equal(now[:n], initProgram) {
		return fmt.Errorf("the init program has been changed (%d bytes, %w)", n, err)
	}
	return nil
}
