package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxPending is how many bytes of frames may wait to be sent; a writer of more waits.
	maxPending = 128 << 10
	// largeBuffer has room for what may be pending, in its records.
	largeBuffer = maxPending + 4<<10
	// smallBuffer is up to what size a connection keeps a buffer when all is sent.
	smallBuffer = 8 << 10
	// lingering is how long a closed connection may take to send what it still has.
	lingering = 5 * time.Second
)

// serveHTTP2 has srv gather the frames of its HTTP/2 connections. Its listener must
// be corkable.
//
// Go's server writes headers and body of an answer one after the other, each from a
// new goroutine whose stack grows on the way down to the kernel, each in a TLS record
// of its own; of long answers every 16 KiB. Gathered, they go together, and with
// those of other requests: see ADR 13.
func serveHTTP2(srv *http.Server) error {
	h2 := &http2.Server{}
	if err := http2.ConfigureServer(srv, h2); err != nil {
		return fmt.Errorf("HTTP/2: %w", err)
	}
	srv.TLSNextProto[http2.NextProtoTLS] = func(srv *http.Server, c *tls.Conn, h http.Handler) {
		var ctx context.Context                                          // nil is as good as none
		if b, ok := h.(interface{ BaseContext() context.Context }); ok { // how net/http passes it on
			ctx = b.BaseContext()
		}
		h2.ServeConn(gather(c), &http2.ServeConnOpts{Context: ctx, Handler: h, BaseConfig: srv})
	}
	return nil
}

// gathered is a TLS connection whose writes a goroutine of its own sends: all that
// came while it sent the ones before, in one piece. Write returns before the bytes are
// sent; why they were not, the next Write tells.
type gathered struct {
	*tls.Conn
	raw *corked

	mu      sync.Mutex
	changed sync.Cond // any of the following has
	pending []byte
	closed  bool
	err     error
}

// gather takes over c, a connection of a corkable listener.
func gather(c *tls.Conn) *gathered {
	g := &gathered{Conn: c, raw: c.NetConn().(*corked)}
	g.changed.L = &g.mu
	go g.send()
	return g
}

// Write implements net.Conn.
func (g *gathered) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.pending) > 0 && len(g.pending)+len(p) > maxPending && g.err == nil && !g.closed {
		g.changed.Wait()
	}
	switch {
	case g.err != nil:
		return 0, g.err
	case g.closed:
		return 0, net.ErrClosed
	}
	if len(g.pending) == 0 {
		g.changed.Broadcast()
	}
	g.pending = extend(g.pending, p)
	return len(p), nil
}

// send sends what is pending until the connection is closed or broken.
func (g *gathered) send() {
	var spare []byte
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.err == nil {
		for len(g.pending) == 0 && !g.closed {
			g.changed.Wait()
		}
		if len(g.pending) == 0 {
			break
		}
		b := g.pending
		g.pending, spare = spare, nil
		g.changed.Broadcast()
		g.mu.Unlock()
		err := g.sendOnce(b)
		spare = drained(b)
		g.mu.Lock()
		g.err = err
	}
	g.changed.Broadcast()
	_ = g.Conn.Close() // nobody is left to tell
}

func (g *gathered) sendOnce(b []byte) error {
	g.raw.cork()
	_, err := g.Conn.Write(b)
	if e := g.raw.uncork(); err == nil {
		err = e
	}
	return err
}

// Close implements net.Conn. What Write has taken is sent before, for as long as
// lingering.
func (g *gathered) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	g.changed.Broadcast()
	now := time.Now()
	_ = g.SetReadDeadline(now) // if this fails, it is closed already
	return g.SetWriteDeadline(now.Add(lingering))
}

// corkable is a listener whose connections can be corked.
type corkable struct{ net.Listener }

// Accept implements net.Listener.
func (l corkable) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &corked{Conn: c}, nil
}

// corked is a connection that, while it is corked, keeps what is written, to pass it
// on in one piece: TLS writes each of its records by itself.
type corked struct {
	net.Conn

	mu   sync.Mutex
	on   bool
	kept []byte
}

// Write implements net.Conn.
func (c *corked) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on {
		c.kept = extend(c.kept, p)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *corked) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = true
}

func (c *corked) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = false
	_, err := c.Conn.Write(c.kept)
	c.kept = drained(c.kept)
	return err
}

// large are buffers that connections have while they send much.
var large = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// extend appends p to what a connection is to send.
func extend(b, p []byte) []byte {
	if n := len(b) + len(p); n > cap(b) && n > smallBuffer && n <= largeBuffer {
		b = append(large.Get().(*[largeBuffer]byte)[:0], b...)
	}
	return append(b, p...)
}

// drained is what a connection keeps of a buffer whose contents are sent.
func drained(b []byte) []byte {
	switch {
	case cap(b) == largeBuffer:
		large.Put((*[largeBuffer]byte)(b[:largeBuffer]))
	case cap(b) <= smallBuffer:
		return b[:0]
	}
	return nil
}
