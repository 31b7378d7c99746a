package stream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// patience is how long a silent server is listened to.
const patience = 50 * time.Millisecond

// echo sends what it reads back.
type echo struct{}

func (e echo) copy(in io.Reader, out io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	go func() {
		for range resize {
		}
	}()
	if in != nil && out != nil {
		_, _ = io.Copy(out, in)
	}
	return nil
}

func (e echo) Exec(_ context.Context, _ string, _ []string, in io.Reader, out, _ io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return e.copy(in, out, resize)
}

func (e echo) Attach(_ context.Context, _ string, in io.Reader, out, _ io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return e.copy(in, out, resize)
}

func (e echo) PortForward(_ context.Context, _ string, _ int32, s io.ReadWriteCloser) error {
	return e.copy(s, s, nil)
}

// FuzzFrames sends arbitrary bytes after a good handshake, to each kind of
// session over WebSocket and SPDY. A defect in a goroutine of the server would end
// the process; the server must also go on answering.
func FuzzFrames(f *testing.F) {
	// As Listen makes it, but it waits for streams that never come only briefly.
	l := httptest.NewUnstartedServer(nil)
	host := l.Listener.Addr().String()
	s := newServer("http://"+host, echo{}, timeouts{20 * time.Millisecond, 20 * time.Millisecond})
	l.Config.Handler = s.http.Handler
	l.Start()
	f.Cleanup(l.CloseClientConnections)
	stdin := []byte{0x82, 0x83, 0, 0, 0, 0, 0, 'h', 'i'}
	f.Add(uint8(0), stdin)
	f.Add(uint8(1), append(stdin, 0x88, 0x80, 0, 0, 0, 0))
	f.Add(uint8(2), []byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add(uint8(3), []byte{0x80, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00, 0x0a, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	f.Add(uint8(3), []byte{0x80, 0x03, 0x00, 0x06, 0x00, 0x00, 0x00, 0x04, 0, 0, 0, 1})
	f.Add(uint8(6), stdin)
	f.Add(uint8(7), []byte{0x82, 0x82, 0, 0, 0, 0, 0xff, 0})
	f.Add(uint8(8), []byte{0x82, 0x84, 0, 0, 0, 0, 0x80, 0x03, 0, 1})
	f.Add(uint8(5), []byte{0x00, 0x00, 0x00, 0x01, 0x01, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, kind uint8, frames []byte) {
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, handshake(s.addr(t, kind%3), form(kind/3%3), kind%3 == 2)); err != nil {
			t.Fatal(err)
		}
		if err := switched(c); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(frames) // the server may have closed already
		_ = c.(*net.TCPConn).CloseWrite()
		// The server answers, closes its end, or waits for more; which, does not matter.
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.Copy(io.Discard, c)
		if resp, err := http.Get("http://" + host + "/no/such"); err != nil {
			t.Errorf("the server does not answer after %q: %v", frames, err)
		} else {
			resp.Body.Close()
		}
	})
}

// addr asks for a session.
func (s *Server) addr(t *testing.T, kind uint8) *url.URL {
	t.Helper()
	var at string
	switch kind {
	case 0:
		r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		at = r.Url
	case 1:
		r, err := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		at = r.Url
	default:
		r, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
		if err != nil {
			t.Fatal(err)
		}
		at = r.Url
	}
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// form is how a client wraps its streams.
type form uint8

const (
	webSocket form = iota // version 4
	spdy
	webSocketV5 // for ports: SPDY inside
)

func handshake(u *url.URL, as form, forward bool) string {
	protocol := "v4.channel.k8s.io"
	switch {
	case as == webSocketV5 && forward:
		protocol = "SPDY/3.1+portforward.k8s.io"
	case as == webSocketV5:
		protocol = "v5.channel.k8s.io"
	case as == spdy && forward:
		protocol = "portforward.k8s.io"
	case forward:
		u.RawQuery = "port=80"
	}
	if as == spdy {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\nContent-Length: 0\r\n\r\n", u.RequestURI(), u.Host, protocol)
	}
	return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: %s\r\n\r\n", u.RequestURI(), u.Host, protocol)
}

// switched reads the answer to a handshake, and no byte more.
func switched(c net.Conn) error {
	var head bytes.Buffer
	one := make([]byte, 1)
	for !bytes.HasSuffix(head.Bytes(), []byte("\r\n\r\n")) {
		if _, err := c.Read(one); err != nil {
			return fmt.Errorf("handshake: %w after %q", err, head.Bytes())
		}
		head.Write(one)
	}
	if !bytes.HasPrefix(head.Bytes(), []byte("HTTP/1.1 101")) {
		return fmt.Errorf("handshake refused: %q", head.Bytes())
	}
	return nil
}
