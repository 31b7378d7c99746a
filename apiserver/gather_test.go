package apiserver

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counted counts the writes that reach the kernel.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// pair is both ends of a TLS connection, gathered at one.
func pair(t *testing.T) (ours *gathered, theirs *tls.Conn, below *counted) {
	srv := httptest.NewTLSServer(nil)
	t.Cleanup(srv.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	theirs = tls.Client(client, &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"})
	below = &counted{Conn: c}
	server := tls.Server(&corked{Conn: below}, srv.TLS)
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := errors.Join(theirs.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); c.Close() })
	return gather(server), theirs, below
}

// TestGatheredOrder writes pieces of all sizes and closes the connection at once.
func TestGatheredOrder(t *testing.T) {
	ours, theirs, _ := pair(t)
	sizes := []int{1, 40, smallBuffer, smallBuffer + 1, 16<<10 + 9, maxPending, maxPending + 1, 2 * largeBuffer}
	var want bytes.Buffer
	for i := range 200 {
		want.Write(bytes.Repeat([]byte{byte(i)}, sizes[i%len(sizes)]))
	}
	go func() {
		b := want.Bytes()
		for i := 0; len(b) > 0; i++ {
			n := min(len(b), sizes[i%len(sizes)])
			if _, err := ours.Write(b[:n]); err != nil {
				t.Error(err)
			}
			b = b[n:]
		}
		if err := ours.Close(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatalf("%d bytes arrived, want %d, or others", len(got), want.Len())
	}
}

// TestGatheredOnce: what is written together is one piece for the kernel, in as few
// records as TLS allows.
func TestGatheredOnce(t *testing.T) {
	ours, theirs, below := pair(t)
	before := below.writes.Load()
	if _, err := ours.Write(make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, theirs, 100<<10); err != nil {
		t.Fatal(err)
	}
	if n := below.writes.Load() - before; n != 1 {
		t.Errorf("the kernel was given 100 KiB in %d pieces", n)
	}
}

// stall writes until the connection takes no more and a Write waits.
func stall(t *testing.T, g *gathered) (result chan error) {
	result = make(chan error, 1)
	go func() {
		for {
			if _, err := g.Write(make([]byte, 16<<10)); err != nil {
				result <- err
				return
			}
		}
	}()
	// The peer does not read: once nothing has moved while a full buffer was pending,
	// the kernel's buffers are full as well.
	full := func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.pending) == maxPending
	}
	for still := 0; still < 100; still++ {
		select {
		case err := <-result:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
		if !full() {
			still = 0
		}
	}
	return result
}

func TestGatheredRefusal(t *testing.T) {
	for name, c := range map[string]struct {
		stop func(ours *gathered, theirs *tls.Conn) error
		want error // nil: any
	}{
		"closed":            {func(ours *gathered, _ *tls.Conn) error { return ours.Close() }, net.ErrClosed},
		"deadline":          {func(ours *gathered, _ *tls.Conn) error { return ours.SetWriteDeadline(time.Now()) }, os.ErrDeadlineExceeded},
		"the peer has gone": {func(_ *gathered, theirs *tls.Conn) error { return theirs.NetConn().Close() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, _ := pair(t)
			result := stall(t, ours)
			if err := c.stop(ours, theirs); err != nil {
				t.Fatal(err)
			}
			if err := <-result; c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("the write that waited: %v, want %v", err, c.want)
			}
			if _, err := ours.Write([]byte("x")); err == nil {
				t.Error("a later write was taken")
			}
		})
	}
}

// TestServeHTTP2 has many requests of all sizes share a connection, and the server
// shut down right after.
func TestServeHTTP2(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.TLS == nil || r.Context().Value(http.LocalAddrContextKey) == nil {
			t.Errorf("%s, TLS %v", r.Proto, r.TLS)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Error(err)
		}
	}))
	srv.Listener = corkable{srv.Listener}
	srv.EnableHTTP2 = true
	if err := serveHTTP2(srv.Config); err != nil {
		t.Fatal(err)
	}
	srv.StartTLS()
	defer srv.Close()
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			want := bytes.Repeat(fmt.Appendf(nil, "%d,", i), 1<<(i%20))
			resp, err := srv.Client().Post(srv.URL, "text/plain", bytes.NewReader(want))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, want) {
				t.Errorf("request %d: %d bytes, want %d: %v", i, len(got), len(want), err)
			}
		})
	}
	all.Wait()
	if err := srv.Config.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
