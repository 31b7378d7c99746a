package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A layer whose download breaks off is continued where it ended, as HTTP has it
// (RFC 9110, range requests): within a pull when a connection breaks, and in a later
// pull, of a later process too, from what was kept on the disk.
//
//	registry ──GET──> resumed ──> digest is checked ──> unpacked
//	                     └──> <dir>/<digest>, until the layer is whole

const (
	// keepFrom is the size in bytes from which the beginning of a layer is worth a file.
	keepFrom = 8 << 20
	// keepFor is how long a beginning is kept.
	keepFor = 24 * time.Hour
	// reconnects is how often a download is continued that gets hardly any further:
	// progress of enough bytes makes it a new one.
	reconnects = 5
	enough     = 1 << 20
	// patience is the longest wait before that.
	patience = 400 * time.Millisecond
)

// resumer continues downloads of blobs. It is an http.RoundTripper.
type resumer struct {
	next http.RoundTripper
	*partials
}

// partials are the beginnings of layers on the disk.
type partials struct {
	dir  string
	mu   sync.Mutex
	busy map[string]bool // by digest; one download of several writes the file
}

// openPartials removes beginnings that are too old to be continued.
func openPartials(dir string, now time.Time) (*partials, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil && now.Sub(st.ModTime()) > keepFor {
			_ = os.Remove(filepath.Join(dir, e.Name())) // again at the next start
		}
	}
	return &partials{dir: dir, busy: map[string]bool{}}, nil
}

// original is the request that led to req, by redirections.
func original(req *http.Request) *http.Request {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return req
}

// isBlob tells downloads of layers and configurations from other requests. Registries
// send clients to other hosts for blobs, with paths of any form.
func isBlob(req *http.Request) bool { return strings.Contains(original(req).URL.Path, "/blobs/") }

var digestForm = regexp.MustCompile(`^sha(256|512):[0-9a-f]{64,128}$`)

func (r resumer) RoundTrip(req *http.Request) (*http.Response, error) {
	digest := path.Base(original(req).URL.Path)
	if req.Method != http.MethodGet || !isBlob(req) || !digestForm.MatchString(digest) || req.Header.Get("Range") != "" {
		return r.next.RoundTrip(req)
	}
	file, have := r.claim(digest)
	resp, err := r.first(req, have)
	if err != nil || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		r.release(digest, file)
		return resp, err
	}
	b := &resumed{r: r, req: req, digest: digest, file: file, body: resp.Body, etag: resp.Header.Get("ETag"), total: -1}
	if resp.StatusCode == http.StatusOK {
		b.total = resp.ContentLength
		if have > 0 { // the registry knows no ranges
			err = errors.Join(file.Truncate(0), rewind(file))
		}
	} else {
		b.kept, b.got = have, have
		if resp.ContentLength >= 0 {
			b.total = have + resp.ContentLength
		}
		err = rewind(file)
		resp.StatusCode, resp.Status, resp.ContentLength = http.StatusOK, "200 OK", b.total
	}
	if err != nil {
		resp.Body.Close()
		r.release(digest, file)
		return nil, fmt.Errorf("continuing the download of %s: %w", digest, err)
	}
	if b.total >= 0 && b.total < keepFrom {
		b.forget()
	}
	resp.Body = b
	return resp, nil
}

func rewind(f *os.File) error { _, err := f.Seek(0, io.SeekStart); return err }

// first asks for what is missing, or for the whole where that cannot be had.
func (r resumer) first(req *http.Request, have int64) (*http.Response, error) {
	if have == 0 {
		return r.next.RoundTrip(req)
	}
	resp, err := r.next.RoundTrip(ranged(req.Context(), req, have, ""))
	if err != nil || resp.StatusCode != http.StatusRequestedRangeNotSatisfiable && begins(resp, have) {
		return resp, err
	}
	resp.Body.Close()
	return r.next.RoundTrip(req)
}

// begins tells whether an answer is good for a request of what follows the first have
// bytes: redirections and refusals are, the whole is, and another part is not.
func begins(resp *http.Response, have int64) bool {
	return resp.StatusCode != http.StatusPartialContent || strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(have, 10)+"-")
}

func ranged(ctx context.Context, req *http.Request, from int64, etag string) *http.Request {
	n := req.Clone(ctx)
	n.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	if strings.HasPrefix(etag, `"`) { // a strong one
		n.Header.Set("If-Range", etag)
	}
	return n
}

// claim opens the file of a layer's beginning and tells its size. A nil file means that
// another download has it, or that the disk does not want it.
func (p *partials) claim(digest string) (*os.File, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[digest] {
		return nil, 0
	}
	f, err := os.OpenFile(p.file(digest), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0
	}
	p.busy[digest] = true
	return f, st.Size()
}

func (p *partials) file(digest string) string {
	return filepath.Join(p.dir, strings.Replace(digest, ":", "-", 1))
}

// release lets others have a layer's file; an empty one is removed.
func (p *partials) release(digest string, f *os.File) {
	if f == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if st, err := f.Stat(); err == nil && st.Size() == 0 {
		_ = os.Remove(p.file(digest))
	}
	f.Close()
	delete(p.busy, digest)
}

// resumed is a blob's content: what the file has, then what the registry sends, over as
// many connections as it takes.
type resumed struct {
	r      resumer
	req    *http.Request
	digest string
	etag   string
	kept   int64 // bytes still to be read from the file
	got    int64 // bytes that are here: the file's and those received
	total  int64 // -1: unknown
	tries  int
	mark   int64 // got, when tries was last 0

	mu     sync.Mutex // Close may come while Read waits
	body   io.ReadCloser
	closed bool
	file   *os.File // nil: nothing is kept
}

func (b *resumed) Read(p []byte) (int, error) {
	if b.kept > 0 {
		n, err := b.file.Read(p[:min(int64(len(p)), b.kept)])
		b.kept -= int64(n)
		return n, err
	}
	n, err := b.current().Read(p)
	b.got += int64(n)
	if n > 0 {
		b.keep(p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && (b.total < 0 || b.got >= b.total):
		b.forget() // whole; whether it is right is known when its digest is
		return n, io.EOF
	}
	if rerr := b.reconnect(err); rerr != nil {
		return n, rerr
	}
	return n, nil
}

func (b *resumed) current() io.Reader {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.body
}

// reconnect asks for the rest after a failure; it returns the failure when that is vain.
func (b *resumed) reconnect(failure error) error {
	ctx := b.req.Context()
	if b.got-b.mark >= enough {
		b.tries, b.mark = 0, b.got
	}
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if b.tries++; closed || ctx.Err() != nil || b.tries > reconnects || b.got == 0 {
		return failure
	}
	wait := time.NewTimer(min(patience, patience>>4<<b.tries))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return failure
	}
	resp, err := b.r.next.RoundTrip(ranged(ctx, b.req, b.got, b.etag))
	if err != nil {
		return b.reconnect(failure) // the registry may be away for a moment
	}
	if resp.StatusCode != http.StatusPartialContent || !begins(resp, b.got) {
		resp.Body.Close()
		return failure
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.body.Close()
	b.body = resp.Body
	if b.closed {
		resp.Body.Close()
		return failure
	}
	return nil
}

func (b *resumed) keep(p []byte) {
	b.mu.Lock()
	file := b.file
	if b.closed {
		file = nil
	}
	var err error
	if file != nil {
		_, err = file.Write(p)
	}
	b.mu.Unlock()
	if err != nil {
		b.forget() // the disk is full: the layer itself will tell
	}
}

// forget removes what is kept; the rest of the download is not.
func (b *resumed) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil || b.kept > 0 || b.closed {
		return
	}
	_ = b.file.Truncate(0) // release removes empty files
	b.r.release(b.digest, b.file)
	b.file = nil
}

// Close keeps what has come for another time.
func (b *resumed) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	b.r.release(b.digest, b.file)
	return b.body.Close()
}
