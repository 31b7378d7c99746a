package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Child is a running process, identified by its pidfd so that its number may
// be reused without harm.
type Child struct {
	PID       int
	StartTime uint64 // clock ticks since boot
	Console   *os.File
	pidfd     *os.File
	exit      <-chan int // from whom else its exit code may be had; see [Launcher.Follow]
}

func newChild(pid, pidfd int) (*Child, error) {
	start, err := startTime(pid)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(pidfd, true); err != nil {
		return nil, fmt.Errorf("preparing the pidfd of process %d: %w", pid, err)
	}
	return &Child{PID: pid, StartTime: start, pidfd: os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

// replace makes c the process pid, another child of ours, which goes on in place of
// the one that c was.
func (c *Child) replace(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("following process %d: %w", pid, err)
	}
	// On a thread of its own: the root of the calling one may be the container's by now.
	var n *Child
	err = OnThread(func() (err error) { n, err = newChild(pid, fd); return err })
	if err != nil {
		unix.Close(fd)
		return err
	}
	if err := c.discard(); err != nil { // it has ended, or is about to
		return errors.Join(err, n.discard())
	}
	c.PID, c.StartTime, c.pidfd = n.PID, n.StartTime, n.pidfd
	return nil
}

// discard kills a process of ours, collects it and closes the handles.
func (c *Child) discard() error {
	fd, err := dupFile(c.pidfd)
	if err != nil {
		return errors.Join(fmt.Errorf("ending process %d: %w", c.PID, err), c.Close())
	}
	defer unix.Close(fd)
	discard(fd)
	return c.Close()
}

// Adopt makes a Child of a pidfd that was kept elsewhere. It takes the
// descriptor over.
func Adopt(pid int, start uint64, pidfd *os.File) (*Child, error) {
	dup, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	pidfd.Close()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		return nil, err
	}
	return &Child{PID: pid, StartTime: start, pidfd: os.NewFile(uintptr(dup), "pidfd")}, nil
}

// Find makes a Child of a process known by number and start time only. It
// returns os.ErrProcessDone when that process is gone.
func Find(pid int, start uint64) (*Child, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.ErrProcessDone
	}
	if now, err := startTime(pid); err != nil || now != start {
		unix.Close(fd)
		return nil, os.ErrProcessDone
	}
	return &Child{PID: pid, StartTime: start, pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Open makes a Child of a process that cannot have ended and been collected yet:
// one that waits to be started, or a child of this process.
func Open(pid int) (*Child, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	c, err := newChild(pid, fd)
	if err != nil {
		unix.Close(fd)
	}
	return c, err
}

// Terminal is the Console.
func (c *Child) Terminal() *os.File { return c.Console }

// File returns the pidfd; it stays the Child's.
func (c *Child) File() *os.File { return c.pidfd }

// Close gives up the handles. The process is not touched.
func (c *Child) Close() error {
	if c.Console != nil {
		c.Console.Close()
	}
	return c.pidfd.Close()
}

// Signal sends sig; a process that is gone already is no error.
func (c *Child) Signal(sig unix.Signal) error {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return fmt.Errorf("signalling process %d: %w", c.PID, sent)
	}
	return nil
}

// Ended reports whether the process has.
func (c *Child) Ended() bool {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	_ = raw.Control(func(fd uintptr) { ended = readable(int(fd)) })
	return ended
}

// readable: the process of the pidfd has ended. A signal that comes just then must not
// be taken for an answer: Go sends itself many.
func readable(pidfd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return err != nil || n > 0
		}
	}
}

// UnknownExit is reported where nobody knows the exit status: of a process that ended
// while nobody held its pidfd, and on kernels before 6.15 of one that was not ours and
// ended while nobody followed it.
const UnknownExit = 255

// Wait blocks until the process has ended and returns its exit code, 128 plus
// the signal's number for one that was killed.
func (c *Child) Wait(ctx context.Context) (int, error) {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return UnknownExit, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.pidfd.Close() })
	defer stop()
	code, failure := UnknownExit, error(nil)
	err = raw.Read(func(fd uintptr) bool {
		if !readable(int(fd)) {
			return false
		}
		code, failure = reap(int(fd))
		if errors.Is(failure, unix.EAGAIN) {
			// Somebody else's child that its parent has not collected: it still shows its status.
			code, failure = zombieCode(c.PID, c.StartTime)
		}
		return !errors.Is(failure, unix.EAGAIN)
	})
	if err != nil {
		return UnknownExit, errors.Join(err, ctx.Err())
	}
	if code == UnknownExit && c.exit != nil {
		code = told(ctx, c.exit)
	}
	return code, failure
}

// reap collects the status of a process that has ended. It returns EAGAIN for one that
// has not, and for one whose real parent has not collected it yet.
func reap(pidfd int) (int, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED, nil)
		if err == unix.EINTR {
			continue
		}
		if err == nil {
			return siginfoCode(&info), nil
		}
		if err == unix.EAGAIN { // ours, and the pidfd does not block
			return UnknownExit, err
		}
		break
	}
	var pi unix.PidfdInfo
	err := error(unix.ESRCH)
	// One that is just being collected is said not to exist: its status was there a
	// moment before, but after it was looked for.
	for try := 0; errors.Is(err, unix.ESRCH) && try < 3; try++ {
		pi = unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err = unix.IoctlPidfdInfo(pidfd, &pi)
	}
	if err != nil {
		return UnknownExit, nil // older kernel, or gone for good
	}
	if pi.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return UnknownExit, unix.EAGAIN
	}
	return statusCode(unix.WaitStatus(uint32(pi.Exit_code))), nil
}

// siginfoCode reads si_code and si_status, which package unix does not name.
func siginfoCode(info *unix.Siginfo) int {
	const statusOffset, exited = 24, 1 // CLD_EXITED
	status := *(*int32)(unsafe.Add(unsafe.Pointer(info), statusOffset))
	if info.Code == exited {
		return int(status)
	}
	return 128 + int(status)
}

// discardGroup kills and collects the processes of the group that pid leads, a child of
// ours that has not been collected: itself, and the one that may go on in its place
// without having been announced.
func discardGroup(pid int) {
	_ = unix.Kill(-pid, unix.SIGKILL) // whoever is just being cloned has it, too, or is not
	for {
		if err := unix.Waitid(unix.P_PGID, pid, nil, unix.WEXITED, nil); err != nil && err != unix.EINTR {
			return // ECHILD: none is left
		}
	}
}

// discard kills a process of ours and collects it.
func discard(pidfd int) {
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			break
		}
	}
	_, _ = reap(pidfd)
}

func statusCode(s unix.WaitStatus) int {
	switch {
	case s.Signaled():
		return 128 + int(s.Signal())
	case s.Exited():
		return s.ExitStatus()
	}
	return UnknownExit
}

// zombieCode reads the exit status of a process that has ended and that nobody
// has collected yet. It returns EAGAIN when that has happened meanwhile.
func zombieCode(pid int, start uint64) (int, error) {
	f, err := statFields(pid)
	if err != nil || f[startField] != strconv.FormatUint(start, 10) || f[0] != "Z" {
		return UnknownExit, unix.EAGAIN
	}
	status, err := strconv.ParseUint(f[len(f)-1], 10, 32)
	if err != nil {
		return UnknownExit, fmt.Errorf("reading the exit status of process %d: %w", pid, err)
	}
	return statusCode(unix.WaitStatus(status)), nil
}

func startTime(pid int) (uint64, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(f[startField], 10, 64)
}

// startField is the start time's place in what statFields returns.
const startField = 19

// statFields returns the fields of /proc/PID/stat from the third, the state,
// to the 52nd, the exit status.
func statFields(pid int) ([]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	// The second field, the command, may hold anything; it ends at the last ')'.
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 50 {
		return nil, fmt.Errorf("/proc/%d/stat is malformed", pid)
	}
	return f, nil
}
