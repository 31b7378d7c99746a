package oci

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// exits learns the exit codes of processes that are not our children from the kernel's
// connector of process events (linux/cn_proc.h). From Linux 6.15 on pidfds tell them, and
// nothing of this is used.
type exits struct {
	socket *os.File
	ended  chan struct{}

	mu      sync.Mutex
	awaited map[int]chan int // by process number; each has room for the one code
}

// Places in a message, all of them of native byte order: a netlink header, a connector
// message, and an event.
const (
	eventKind     = 16 + 20
	eventProcess  = eventKind + 16 // the thread, then its process, then the status
	eventLength   = eventProcess + 12
	exitEvent     = 0x80000000
	connectorProc = 1 // the connector's index, value and multicast group of process events
	// lateExit is how long an event may come after its pidfd is readable.
	lateExit = time.Second
)

// listenExits needs CAP_NET_ADMIN, and the first namespaces of processes and users.
func listenExits() (*exits, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, fmt.Errorf("opening the connector of process events: %w", err)
	}
	e := &exits{socket: os.NewFile(uintptr(fd), "connector"), ended: make(chan struct{}), awaited: map[int]chan int{}}
	if err := subscribe(fd); err != nil {
		e.socket.Close()
		return nil, fmt.Errorf("listening to process events: %w", err)
	}
	go e.read()
	return e, nil
}

func subscribe(fd int) error {
	order := binary.NativeEndian
	// Forks and executions, of which there are many, are dropped by the kernel. Its filters
	// load words as the network has them.
	kind := binary.BigEndian.Uint32(order.AppendUint32(nil, exitEvent))
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: eventKind},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: kind},
		{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: connectorProc}); err != nil {
		return err
	}
	const listen, length = 1, eventKind + 4
	m := order.AppendUint32(nil, length)
	m = order.AppendUint16(m, unix.NLMSG_DONE)
	m = append(m, make([]byte, 10)...) // flags, number, sender
	m = order.AppendUint32(order.AppendUint32(m, connectorProc), connectorProc)
	m = append(m, make([]byte, 8)...) // numbers
	m = order.AppendUint16(order.AppendUint16(m, 4), 0)
	m = order.AppendUint32(m, listen)
	return unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (e *exits) read() {
	defer close(e.ended)
	buf := make([]byte, 4096)
	for {
		n, err := e.socket.Read(buf)
		switch {
		case err == nil:
			e.event(buf[:n])
		case errors.Is(err, unix.ENOBUFS): // some were lost, and are unknown then
		default:
			return // closed
		}
	}
}

// event takes one message; what is not the end of an awaited process is ignored.
func (e *exits) event(m []byte) {
	order := binary.NativeEndian
	if len(m) < eventLength || order.Uint32(m[eventKind:]) != exitEvent {
		return
	}
	thread, process := order.Uint32(m[eventProcess:]), order.Uint32(m[eventProcess+4:])
	if thread != process {
		return
	}
	e.mu.Lock()
	to := e.awaited[int(process)]
	delete(e.awaited, int(process))
	e.mu.Unlock()
	if to != nil {
		to <- statusCode(unix.WaitStatus(order.Uint32(m[eventProcess+8:])))
	}
}

// follow begins to wait for the end of a process that runs.
func (e *exits) follow(pid int) <-chan int {
	to := make(chan int, 1)
	e.mu.Lock()
	e.awaited[pid] = to
	e.mu.Unlock()
	return to
}

func (e *exits) close() error {
	err := e.socket.Close()
	<-e.ended
	return err
}

// told is the code that comes from, or UnknownExit.
func told(ctx context.Context, from <-chan int) int {
	t := time.NewTimer(lateExit)
	defer t.Stop()
	select {
	case code := <-from:
		return code
	case <-t.C:
	case <-ctx.Done():
	}
	return UnknownExit
}
