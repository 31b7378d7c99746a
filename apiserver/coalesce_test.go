package apiserver

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"testing"
	"time"
)

// pair is a connection of each kind, coalesced at one end.
func pair(t *testing.T) (ours *coalesced, theirs net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if theirs, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	c, err := coalescing{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ours = c.(*coalesced)
	t.Cleanup(func() { theirs.Close(); ours.Conn.Close() })
	return ours, theirs
}

// TestCoalescedOrder writes records of all sizes: their bytes arrive in order, also
// those that are taken just before the connection is sealed and closed.
func TestCoalescedOrder(t *testing.T) {
	ours, theirs := pair(t)
	var want bytes.Buffer
	for i := range 400 {
		p := bytes.Repeat([]byte{byte(i)}, []int{1, 40, fullRecord - 1, fullRecord, fullRecord + 22, maxPending + 1}[i%6])
		want.Write(p)
	}
	go func() {
		b := want.Bytes()
		for i := 0; len(b) > 0; i++ {
			n := min(len(b), []int{1, 40, fullRecord - 1, fullRecord, fullRecord + 22, maxPending + 1}[i%6])
			if _, err := ours.Write(b[:n]); err != nil {
				t.Error(err)
			}
			b = b[n:]
		}
		if err := errors.Join(ours.SetWriteDeadline(time.Now()), ours.Close()); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatalf("%d bytes arrived, want %d, or in another order", len(got), want.Len())
	}
}

// TestCoalescedDrained seals a connection whose peer has read nothing yet, as
// HTTP/1.1 does some time before it closes one.
func TestCoalescedDrained(t *testing.T) {
	ours, theirs := pair(t)
	written := 0
	for full := false; !full; {
		n, err := ours.Write(make([]byte, fullRecord))
		if err != nil {
			t.Fatal(err)
		}
		written += n
		ours.mu.Lock()
		full = len(ours.pending)+fullRecord > maxPending
		ours.mu.Unlock()
	}
	if err := errors.Join(ours.SetWriteDeadline(time.Now()), theirs.SetReadDeadline(time.Now().Add(10*time.Second))); err != nil {
		t.Fatal(err)
	}
	if n, err := io.CopyN(io.Discard, theirs, int64(written)); err != nil {
		t.Fatalf("%d bytes of %d arrived: %v", n, written, err)
	}
}

// stall writes until the connection takes no more and Write waits.
func stall(t *testing.T, c *coalesced) (result chan error) {
	result = make(chan error, 1)
	go func() {
		for {
			if _, err := c.Write(make([]byte, fullRecord)); err != nil {
				result <- err
				return
			}
		}
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.waiting {
		c.mu.Unlock()
		select {
		case err := <-result:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
		c.mu.Lock()
	}
	return result
}

func TestCoalescedRefusal(t *testing.T) {
	for name, c := range map[string]struct {
		stop func(ours *coalesced, theirs net.Conn) error
		want error
	}{
		"closed while a write waits": {func(ours *coalesced, _ net.Conn) error { return ours.Close() }, net.ErrClosed},
		"deadline passed":            {func(ours *coalesced, _ net.Conn) error { return ours.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
		"deadline to come":           {func(ours *coalesced, _ net.Conn) error { return ours.SetDeadline(time.Now().Add(time.Millisecond)) }, os.ErrDeadlineExceeded},
		"peer gone":                  {func(_ *coalesced, theirs net.Conn) error { return theirs.Close() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := pair(t)
			result := stall(t, ours)
			if err := c.stop(ours, theirs); err != nil {
				t.Fatal(err)
			}
			err := <-result
			if c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("the write that waited: %v, want %v", err, c.want)
			}
			if _, again := ours.Write([]byte("x")); again == nil {
				t.Fatal("a later write was taken")
			}
		})
	}
}

// TestCoalescedOne closes connections right after long answers, over HTTP/1.1.
func TestCoalescedOne(t *testing.T) {
	answer := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		if _, err := w.Write(answer); err != nil {
			t.Error(err)
		}
	}))
	srv.Listener = coalescing{srv.Listener}
	srv.StartTLS()
	defer srv.Close()
	conf := srv.Client().Transport.(*http.Transport).TLSClientConfig
	for range 3 {
		c, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{RootCAs: conf.RootCAs, ServerName: "example.com"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(c)
		c.Close()
		if err != nil || !bytes.HasSuffix(all, answer) {
			t.Fatalf("%d bytes, %v", len(all), err)
		}
	}
}
