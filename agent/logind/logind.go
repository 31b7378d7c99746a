// Package logind asks systemd-logind to wait for the node's pods before the machine
// goes down, and hears when it is about to:
// https://www.freedesktop.org/wiki/Software/systemd/inhibit.
//
// It speaks just so much of D-Bus as that needs: one connection, three methods, one
// signal.
package logind

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Socket is where the system's bus listens.
const Socket = "/run/dbus/system_bus_socket"

const (
	busName     = "org.freedesktop.DBus"
	service     = "org.freedesktop.login1"
	object      = "/org/freedesktop/login1"
	manager     = "org.freedesktop.login1.Manager"
	shutdown    = "PrepareForShutdown"
	answerIn    = 10 * time.Second
	inhibitWhat = "shutdown"
)

// Bus is a connection to the system's bus. Make one with Dial.
type Bus struct {
	conn   *net.UnixConn
	signal chan bool

	write  sync.Mutex
	mu     sync.Mutex
	serial uint32
	calls  map[uint32]chan answer
	files  []*os.File // that came and were not asked for yet
	err    error      // why the connection ended
	done   chan struct{}
}

type answer struct {
	m    *message
	file *os.File
}

// Dial connects to the bus at path and says hello.
func Dial(ctx context.Context, path string) (*Bus, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("system bus: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("system bus: %s is no socket", path)
	}
	if err := authenticate(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("system bus: %w", err)
	}
	b := &Bus{conn: conn, signal: make(chan bool, 8), calls: map[uint32]chan answer{}, done: make(chan struct{})}
	go b.read()
	if _, err := b.call(ctx, &message{destination: busName, path: "/org/freedesktop/DBus", iface: busName, member: "Hello"}); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// authenticate says who we are, byte by byte, so that nothing of what follows is read.
func authenticate(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(answerIn)); err != nil {
		return err
	}
	defer conn.SetDeadline(time.Time{})
	uid := fmt.Sprintf("%x", strconv.Itoa(os.Getuid()))
	for _, step := range []struct{ say, want string }{{"\x00AUTH EXTERNAL " + uid + "\r\n", "OK"}, {"NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD"}, {"BEGIN\r\n", ""}} {
		if _, err := io.WriteString(conn, step.say); err != nil {
			return err
		}
		if step.want == "" {
			return nil
		}
		line, err := readLine(conn)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, step.want) {
			return fmt.Errorf("it answered %q instead of %s", line, step.want)
		}
	}
	return nil
}

func readLine(r io.Reader) (string, error) {
	s := bufio.NewReaderSize(oneByte{r}, 16)
	line, err := s.ReadString('\n')
	return strings.TrimSpace(line), err
}

// oneByte keeps a buffered reader from reading ahead.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

// Close ends the connection.
func (b *Bus) Close() error {
	err := b.conn.Close()
	<-b.done
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.files {
		f.Close()
	}
	b.files = nil
	return err
}

// read hands answers and signals on until the connection ends.
func (b *Bus) read() {
	defer close(b.done)
	for {
		m, err := b.next()
		if err != nil {
			b.mu.Lock()
			b.err = err
			for _, ch := range b.calls {
				close(ch)
			}
			b.calls = nil
			close(b.signal)
			b.mu.Unlock()
			return
		}
		switch m.kind {
		case typeReturn, typeError:
			b.mu.Lock()
			ch := b.calls[m.reply]
			delete(b.calls, m.reply)
			a := answer{m: m}
			if m.types == "h" && len(b.files) > 0 {
				a.file, b.files = b.files[0], b.files[1:]
			}
			b.mu.Unlock()
			if ch != nil {
				ch <- a
			} else if a.file != nil {
				a.file.Close()
			}
		case typeSignal:
			if m.iface == manager && m.member == shutdown && m.types == "b" {
				select {
				case b.signal <- m.values().u32() != 0:
				default: // nobody listens
				}
			}
		}
	}
}

// next reads one message, and the files that come with it.
func (b *Bus) next() (*message, error) {
	head := make([]byte, 16)
	if err := b.fill(head); err != nil {
		return nil, err
	}
	n, err := length(head)
	if err != nil {
		return nil, err
	}
	whole := append(head, make([]byte, n-16)...)
	if err := b.fill(whole[16:]); err != nil {
		return nil, err
	}
	return decode(whole)
}

func (b *Bus) fill(p []byte) error {
	control := make([]byte, syscall.CmsgSpace(4*16))
	for len(p) > 0 {
		n, cn, _, _, err := b.conn.ReadMsgUnix(p, control)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		if cn > 0 {
			list, err := syscall.ParseSocketControlMessage(control[:cn])
			if err != nil {
				return err
			}
			for i := range list {
				fds, err := syscall.ParseUnixRights(&list[i])
				if err != nil {
					continue // something else than files
				}
				b.mu.Lock()
				for _, fd := range fds {
					syscall.CloseOnExec(fd)
					b.files = append(b.files, os.NewFile(uintptr(fd), "inhibitor"))
				}
				b.mu.Unlock()
			}
		}
		p = p[n:]
	}
	return nil
}

func (b *Bus) call(ctx context.Context, m *message, args ...string) (answer, error) {
	var body writer
	for _, a := range args {
		body.str(a)
		m.types += "s"
	}
	ch := make(chan answer, 1)
	b.mu.Lock()
	if b.calls == nil {
		defer b.mu.Unlock()
		return answer{}, fmt.Errorf("call %s on the system bus: %w", m.member, b.err)
	}
	b.serial++
	m.kind, m.serial, m.body = typeCall, b.serial, body.b
	b.calls[m.serial] = ch
	b.mu.Unlock()
	b.write.Lock()
	_, err := b.conn.Write(m.encode())
	b.write.Unlock()
	if err != nil {
		return answer{}, fmt.Errorf("call %s on the system bus: %w", m.member, err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	select {
	case a, ok := <-ch:
		if !ok {
			return answer{}, fmt.Errorf("call %s: the system bus has gone", m.member)
		}
		if a.m.kind == typeError {
			why := a.m.err
			if strings.HasPrefix(a.m.types, "s") {
				why += ": " + a.m.values().str()
			}
			return answer{}, fmt.Errorf("call %s: %s", m.member, why)
		}
		return a, nil
	case <-ctx.Done():
		return answer{}, fmt.Errorf("call %s on the system bus: %w", m.member, ctx.Err())
	}
}

// MaxDelay is how long logind waits for whoever inhibits.
func (b *Bus) MaxDelay(ctx context.Context) (time.Duration, error) {
	a, err := b.call(ctx, &message{destination: service, path: object, iface: "org.freedesktop.DBus.Properties", member: "Get"}, manager, "InhibitDelayMaxUSec")
	if err != nil {
		return 0, err
	}
	r := a.m.values()
	if kind := r.sig(); kind != "t" {
		return 0, fmt.Errorf("logind tells its longest delay as a %q", kind)
	}
	return time.Duration(r.u64()) * time.Microsecond, nil
}

// Watch returns a channel that says true when the machine is about to go down, and
// false when that was called off. It is closed when the connection ends.
func (b *Bus) Watch(ctx context.Context) (<-chan bool, error) {
	rule := "type='signal',interface='" + manager + "',member='" + shutdown + "',path='" + object + "'"
	_, err := b.call(ctx, &message{destination: busName, path: "/org/freedesktop/DBus", iface: busName, member: "AddMatch"}, rule)
	return b.signal, err
}

// Inhibit has logind wait until what it returns is closed, or the longest delay has
// passed.
func (b *Bus) Inhibit(ctx context.Context) (io.Closer, error) {
	a, err := b.call(ctx, &message{destination: service, path: object, iface: manager, member: "Inhibit"}, inhibitWhat, "knarr", "pods of the node are ended in order", "delay")
	if err != nil {
		return nil, err
	}
	if a.file == nil {
		return nil, errors.New("logind sent no inhibitor")
	}
	return a.file, nil
}
