package stream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	server "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	utilexec "k8s.io/utils/exec"
)

// script answers as a command would: its input in capitals, a word of complaint, the
// terminal's width, and an exit code.
type script struct{ echo }

func (script) Exec(_ context.Context, _ string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan server.TerminalSize) error {
	// The input is read at once, as a terminal does: on a WebSocket all streams wait for
	// one whose reader does not come.
	var text []byte
	done := make(chan error, 1)
	go func() {
		var err error
		if in != nil {
			text, err = io.ReadAll(in) // needs the end of the input
		}
		done <- err
	}()
	if tty {
		fmt.Fprintf(out, "width %d\n", (<-resize).Width)
	}
	if err := <-done; err != nil {
		return err
	}
	fmt.Fprint(out, strings.ToUpper(string(text)))
	if errw != nil {
		fmt.Fprint(errw, "complaint")
	}
	switch cmd[0] {
	case "seven":
		return utilexec.CodeExitError{Err: fmt.Errorf("exit 7"), Code: 7}
	case "broken":
		return fmt.Errorf("no such thing")
	}
	return nil
}

func listen(t *testing.T) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0", script{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func parse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

type sizes struct{ left []remotecommand.TerminalSize }

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.left) == 0 {
		return nil
	}
	n := s.left[0]
	s.left = s.left[1:]
	return &n
}

// Kubernetes' own clients, over SPDY and over version 5 on WebSockets, see the same.
func TestExec(t *testing.T) {
	s := listen(t)
	for _, c := range []struct {
		cmd, in   string
		tty       bool
		out, errw string
		why       string
	}{
		{"true", "words", false, "WORDS", "complaint", ""},
		{"seven", "", false, "", "complaint", "exit code 7"},
		{"broken", "x", false, "X", "complaint", "no such thing"},
		{"true", "line", true, "width 99\nLINE", "", ""},
	} {
		for _, form := range []string{"SPDY", "WebSocket"} {
			r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{c.cmd}, Stdin: c.in != "", Stdout: true, Stderr: !c.tty, Tty: c.tty})
			if err != nil {
				t.Fatal(err)
			}
			e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, parse(t, r.Url))
			if form == "WebSocket" {
				e, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, r.Url)
			}
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			var out, errw bytes.Buffer
			o := remotecommand.StreamOptions{Stdout: &out, Tty: c.tty}
			if c.in != "" {
				o.Stdin = strings.NewReader(c.in)
			}
			if !c.tty {
				o.Stderr = &errw
			} else {
				o.TerminalSizeQueue = &sizes{[]remotecommand.TerminalSize{{Width: 99, Height: 9}}}
			}
			err = e.StreamWithContext(ctx, o)
			cancel()
			if out.String() != c.out || errw.String() != c.errw || (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s over %s: %q, %q, %v", c.cmd, form, out.String(), errw.String(), err)
			}
		}
	}
}

// A port is reached over SPDY inside of a WebSocket.
func TestTunnel(t *testing.T) {
	s := listen(t)
	r, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := portforward.NewSPDYOverWebsocketDialer(parse(t, r.Url), &rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	conn, protocol, err := d.Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if protocol != "portforward.k8s.io" {
		t.Errorf("protocol %q", protocol)
	}
	open := func(kind string) httpstream.Stream {
		st, err := conn.CreateStream(http.Header{"Streamtype": {kind}, "Port": {"80"}, "Requestid": {"1"}})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	open("error").Close()
	data := open("data")
	if _, err := io.WriteString(data, "through"); err != nil {
		t.Fatal(err)
	}
	data.Close()
	if got, err := io.ReadAll(data); string(got) != "through" {
		t.Errorf("came back: %q, %v", got, err)
	}
}

// A URL is good once, for its own purpose and for a minute.
func TestTokens(t *testing.T) {
	var held tokens
	now := time.Now()
	put := func() string {
		token, err := held.put("request", now)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	a := put()
	if held.take(a, now) != "request" || held.take(a, now) != nil {
		t.Error("a token is not good exactly once")
	}
	if b := put(); held.take(b, now.Add(tokenLife+1)) != nil {
		t.Error("an old token is good")
	}
	for range maxTokens {
		put()
	}
	if _, err := held.put("request", now); err == nil {
		t.Error("there is no limit")
	}
	if _, err := held.put("request", now.Add(tokenLife+1)); err != nil {
		t.Errorf("old tokens are counted: %v", err)
	}
	s := listen(t)
	r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(strings.Replace(r.Url, "/exec/", "/attach/", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("a URL for exec attaches: %s", resp.Status)
	}
}
