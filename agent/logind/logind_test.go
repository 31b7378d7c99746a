package logind

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bus is the system's bus with logind on it.
type bus struct {
	t     *testing.T
	path  string
	held  chan *os.File // our end of each inhibitor
	delay time.Duration
	deny  string // this method

	mu   sync.Mutex
	conn *net.UnixConn
}

func serve(t *testing.T) *bus {
	t.Helper()
	b := &bus{t: t, path: filepath.Join(t.TempDir(), "bus"), held: make(chan *os.File, 8), delay: 5 * time.Second}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: b.path})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Go(func() { b.talk(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		b.drop()
		wg.Wait()
	})
	return b
}

func (b *bus) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		b.conn.Close()
	}
}

func (b *bus) talk(c *net.UnixConn) {
	defer c.Close()
	b.mu.Lock()
	b.conn = c
	b.mu.Unlock()
	io.ReadFull(c, make([]byte, 1))
	for {
		line, err := readLine(c)
		if err != nil || line == "BEGIN" {
			break
		}
		reply := "OK 1234\r\n"
		switch {
		case line == "AUTH":
			reply = "REJECTED EXTERNAL\r\n"
		case strings.HasPrefix(line, "NEG"):
			reply = "AGREE_UNIX_FD\r\n"
		}
		io.WriteString(c, reply)
	}
	for {
		head := make([]byte, 16)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		n, err := length(head)
		if err != nil {
			b.t.Error(err)
			return
		}
		rest := make([]byte, n-16)
		if _, err := io.ReadFull(c, rest); err != nil {
			return
		}
		m, err := decode(append(head, rest...))
		if err != nil {
			b.t.Error(err)
			return
		}
		b.answer(c, m)
	}
}

func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReaderSize(oneByte{r}, 16).ReadString('\n')
	return strings.TrimSpace(line), err
}

// oneByte keeps a buffered reader from reading ahead.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func (b *bus) answer(c *net.UnixConn, m *message) {
	r := &message{kind: typeReturn, serial: 1000 + m.serial, reply: m.serial}
	switch {
	case m.member == b.deny:
		var w writer
		w.str("not you")
		r.kind, r.err, r.types, r.body = typeError, "org.example.Denied", "s", w.b
	case m.member == "Hello":
		var w writer
		w.str(":1.7")
		r.types, r.body = "s", w.b
	case m.member == "Get":
		var w writer
		w.sig("t")
		w.align(8)
		w.b = binary.LittleEndian.AppendUint64(w.b, uint64(b.delay/time.Microsecond))
		r.types, r.body = "v", w.b
	case m.member == "Inhibit":
		v := m.values()
		if what, who, _, mode := v.str(), v.str(), v.str(), v.str(); what != "shutdown" || who != "knarr" || mode != "delay" {
			b.t.Errorf("inhibits %s for %s by %s", what, who, mode)
		}
		mine, theirs, err := os.Pipe()
		if err != nil {
			b.t.Error(err)
			return
		}
		var w writer
		w.u32(0)
		r.types, r.body = "h", w.b
		if _, _, err := c.WriteMsgUnix(r.encode(), syscall.UnixRights(int(theirs.Fd())), nil); err != nil {
			b.t.Error(err)
		}
		theirs.Close()
		b.held <- mine
		return
	}
	if _, err := c.Write(r.encode()); err != nil {
		b.t.Log(err)
	}
}

func (b *bus) announce(down uint32) {
	var w writer
	w.u32(down)
	m := &message{kind: typeSignal, serial: 1, path: object, iface: manager, member: shutdown, types: "b", body: w.b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.conn.Write(m.encode()); err != nil {
		b.t.Error(err)
	}
}

func TestLogindWaitsAndTells(t *testing.T) {
	srv := serve(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := Dial(ctx, srv.path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if d, err := b.MaxDelay(ctx); err != nil || d != 5*time.Second {
		t.Errorf("longest delay: %v, %v", d, err)
	}
	down, err := b.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := b.Inhibit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	held := <-srv.held
	defer held.Close()
	srv.announce(1)
	srv.announce(0)
	if a, b := <-down, <-down; !a || b {
		t.Errorf("told %v, %v", a, b)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
	// The end of ours is the end of the lock.
	if n, err := held.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the lock is still held: %d, %v", n, err)
	}
	srv.drop()
	if _, open := <-down; open {
		t.Error("a signal came out of nowhere")
	}
	if _, err := b.Inhibit(ctx); err == nil {
		t.Error("a dead bus answered")
	}
}

func TestLogindRefuses(t *testing.T) {
	srv := serve(t)
	srv.deny = "Inhibit"
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := Dial(ctx, srv.path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Inhibit(ctx); err == nil || err.Error() != "call org.freedesktop.login1.Manager.Inhibit on the system bus: org.example.Denied: not you" {
		t.Error(err)
	}
	if _, err := Dial(ctx, "/nowhere"); err == nil {
		t.Error("a bus that is not there was reached")
	}
}

// The real bus understands the hello and the subscription, and has no logind.
func TestAgainstDBus(t *testing.T) {
	exe, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon")
	}
	path := filepath.Join(t.TempDir(), "bus")
	cmd := exec.Command(exe, "--session", "--nofork", "--print-address", "--address=unix:path="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := readLine(out); err != nil { // it listens
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Watch(ctx); err != nil {
		t.Error(err)
	}
	if _, err := b.Inhibit(ctx); err == nil || !strings.Contains(err.Error(), "org.freedesktop.DBus.Error.ServiceUnknown") {
		t.Errorf("without logind: %v", err)
	}
}
