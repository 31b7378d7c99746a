package external

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// console is where create sends the master of a container's terminal.
type console struct {
	l    *net.UnixListener
	dir  string
	path string
}

func listenConsole(scratch string) (*console, error) {
	dir, err := os.MkdirTemp(scratch, "")
	if err != nil {
		return nil, fmt.Errorf("making a folder for a terminal's socket: %w", err)
	}
	c := &console{dir: dir, path: filepath.Join(dir, "tty")}
	if c.l, err = net.ListenUnix("unix", &net.UnixAddr{Name: c.path, Net: "unix"}); err != nil {
		return nil, errors.Join(fmt.Errorf("making a terminal's socket: %w", err), os.RemoveAll(dir))
	}
	return c, nil
}

func (c *console) close() { c.l.Close(); os.RemoveAll(c.dir) }

// receive is called when the container has been created: the master was sent before.
func (c *console) receive(ctx context.Context) (*os.File, error) {
	stop := context.AfterFunc(ctx, func() { c.l.Close() })
	defer stop()
	conn, err := c.l.AcceptUnix()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for a terminal: %w", err), ctx.Err())
	}
	defer conn.Close()
	buf, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, fmt.Errorf("receiving a terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receiving a terminal: %d control messages (%w)", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receiving a terminal: %d descriptors (%w)", len(fds), err)
	}
	return newTerminal(fds[0])
}

// newTerminal makes a file that can be waited for.
func newTerminal(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("preparing a terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// openTerminal opens a new pseudo terminal of the host.
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening /dev/ptmx: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("unlocking a terminal: %w", err)
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("reading a terminal's number: %w", err)
	}
	if master, err = newTerminal(fd); err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("opening a terminal: %w", err)
	}
	return master, slave, nil
}
