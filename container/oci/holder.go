package oci

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Holder keeps descriptors in a process of its own (c/holder.c), so that they
// outlive this one. One client is served at a time.
type Holder struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

const (
	holderKey    = 95
	holderPacket = 1 + holderKey
	holderFDs    = 4
)

// ErrNotHeld is returned for a key that the holder does not know.
var ErrNotHeld = errors.New("no such descriptor is held")

// OpenHolder connects to the holder behind socket, starting one when none
// answers. place, when not nil, is told the holder's PID so that it can be
// moved out of the caller's cgroup.
func OpenHolder(socket string, place func(pid int) error) (*Holder, error) {
	if h, err := dialHolder(socket); err == nil {
		return h, nil
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("removing a dead holder's socket: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return nil, err
	}
	if err := startHolder(socket); err != nil {
		return nil, err
	}
	h, err := dialHolder(socket)
	if err != nil {
		return nil, err
	}
	if place != nil {
		pid, err := h.pid()
		if err == nil {
			err = place(pid)
		}
		if err != nil {
			return nil, errors.Join(err, h.Quit())
		}
	}
	return h, nil
}

// pid reads the number that the kernel noted for the socket's other end. It
// is the listener's, so the holder listens anew on the descriptor it is given.
func (h *Holder) pid() (int, error) {
	raw, err := h.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, fmt.Errorf("reading the holder's identity: %w", err)
	}
	return int(cred.Pid), nil
}

func startHolder(socket string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making the holder's socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fmt.Errorf("binding the holder's socket %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	// The kernel queues connections from here on; the holder's own call of
	// listen then makes it, not us, the identity behind the socket.
	if err := unix.Listen(fd, 4); err != nil {
		return fmt.Errorf("listening on the holder's socket: %w", err)
	}
	text, err := program("knarr-holder", holderProgram)
	if err != nil {
		return err
	}
	defer text.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// The program is handed on like the others, see programPath; there it is the sixth.
	pid, err := syscall.ForkExec("/proc/self/fd/5", []string{"knarr-holder"},
		&syscall.ProcAttr{Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(fd), w.Fd(), text.Fd()}})
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the holder: %w", err)
	}
	// It forks itself away from us; what we wait for is only its first half.
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if err != unix.EINTR {
			break
		}
	}
	if n, err := r.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("the holder did not come up: %w", err)
	}
	return nil
}

func dialHolder(socket string) (*Holder, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("connecting to the holder: %w", err)
	}
	return &Holder{conn: conn}, nil
}

// Close ends the connection; what is held stays held.
func (h *Holder) Close() error { return h.conn.Close() }

// Quit ends the holder itself.
func (h *Holder) Quit() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.conn.Write(holderRequest('Q', ""))
	if err == nil {
		_, _ = h.conn.Read(make([]byte, 1)) // its end
	}
	return errors.Join(err, h.conn.Close())
}

// Put keeps up to four files under key, instead of any kept there before.
func (h *Holder) Put(key string, files ...*os.File) error {
	if key == "" || len(key) > holderKey || len(files) > holderFDs {
		return fmt.Errorf("holder key %q with %d files: at most %d bytes and %d files", key, len(files), holderKey, holderFDs)
	}
	fds := make([]int, 0, len(files))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, f := range files {
		fd, err := dupFile(f)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, _, err := h.conn.WriteMsgUnix(holderRequest('P', key), unix.UnixRights(fds...), nil); err != nil {
		return fmt.Errorf("handing %s to the holder: %w", key, err)
	}
	_, _, err := h.answer(key)
	return err
}

// Get returns duplicates of the files kept under key.
func (h *Holder) Get(key string) ([]*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.conn.Write(holderRequest('G', key)); err != nil {
		return nil, fmt.Errorf("asking the holder for %s: %w", key, err)
	}
	_, files, err := h.answer(key)
	return files, err
}

// Drop lets go of what is kept under key. An unknown key is no error.
func (h *Holder) Drop(key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.conn.Write(holderRequest('D', key)); err != nil {
		return fmt.Errorf("dropping %s from the holder: %w", key, err)
	}
	_, _, err := h.answer(key)
	if errors.Is(err, ErrNotHeld) {
		return nil
	}
	return err
}

// List returns the keys in use.
func (h *Holder) List() ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.conn.Write(holderRequest('L', "")); err != nil {
		return nil, fmt.Errorf("listing what the holder keeps: %w", err)
	}
	var keys []string
	for {
		key, _, err := h.answer("")
		if err != nil || key == "" {
			return keys, err
		}
		keys = append(keys, key)
	}
}

func holderRequest(op byte, key string) []byte {
	p := make([]byte, holderPacket)
	p[0] = op
	copy(p[1:], key)
	return p
}

// answer reads one packet; the caller holds the lock.
func (h *Holder) answer(key string) (string, []*os.File, error) {
	buf, oob := make([]byte, holderPacket), make([]byte, unix.CmsgSpace(4*holderFDs))
	n, oobn, _, _, err := h.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return "", nil, fmt.Errorf("reading the holder's answer: %w", err)
	}
	if n != holderPacket {
		return "", nil, errors.New("the holder has ended")
	}
	var files []*os.File
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for i := range messages {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				continue
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), key))
			}
		}
	}
	if buf[0] != 'K' {
		closeAll(files)
		return "", nil, fmt.Errorf("%s: %w", key, ErrNotHeld)
	}
	end := 1
	for end < n && buf[end] != 0 {
		end++
	}
	return string(buf[1:end]), files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
