package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// flaky is a registry of one image with one large layer, which it serves from another
// path, as large registries do, and whose connections break.
type flaky struct {
	ref   string
	layer []byte

	mu     sync.Mutex
	ranges bool  // answer range requests
	cut    int64 // bytes after which a connection breaks; 0: never
	times  int   // how many connections break
	spoil  bool  // send something else from the middle on
	sent   int64
	asked  []string // the Range of each request
	onSent func(int64)
}

func newFlaky(t *testing.T) *flaky {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := make([]byte, keepFrom+keepFrom/2)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range body {
		body[i] = byte(rnd.Uint32())
	}
	if err := w.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	h := newHub(t)
	f := &flaky{layer: buf.Bytes(), ranges: true}
	layer := static.NewLayer(f.layer, types.OCIUncompressedLayer)
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	origin, err := name.ParseReference(h.host + "/big:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(origin, img); err != nil {
		t.Fatal(err)
	}
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/blobs/"+digest.String()):
			http.Redirect(w, r, "/elsewhere/big", http.StatusTemporaryRedirect)
		case r.URL.Path == "/elsewhere/big":
			f.serve(w, r)
		default:
			r.URL.Scheme, r.URL.Host = "http", h.host
			req := r.Clone(r.Context())
			req.RequestURI = ""
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			for k, v := range resp.Header {
				w.Header()[k] = v
			}
			w.WriteHeader(resp.StatusCode)
			_, _ = io.Copy(w, resp.Body)
		}
	}))
	t.Cleanup(srv.Close)
	f.ref = strings.TrimPrefix(srv.URL, "http://") + "/big:1"
	return f
}

func (f *flaky) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Header.Get("Range"))
	cut, ranges, spoil := f.cut, f.ranges, f.spoil
	if f.times == 0 {
		cut = 0
	} else {
		f.times--
	}
	f.mu.Unlock()
	data, from := bytes.Clone(f.layer), int64(0)
	if spoil {
		data[len(data)/2] ^= 0xff
	}
	w.Header().Set("ETag", `"one"`)
	if text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && ranges {
		from, _ = strconv.ParseInt(strings.TrimSuffix(text, "-"), 10, 64)
		if from >= int64(len(data)) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		w.Header().Set("Content-Length", fmt.Sprint(int64(len(data))-from))
		w.WriteHeader(http.StatusPartialContent)
	} else {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	}
	data = data[from:]
	if cut > 0 && cut < int64(len(data)) {
		data = data[:cut]
	}
	for len(data) > 0 {
		n, err := w.Write(data[:min(len(data), 64<<10)])
		if err != nil {
			return
		}
		data = data[n:]
		f.mu.Lock()
		f.sent += int64(n)
		sent, tell := f.sent, f.onSent
		f.mu.Unlock()
		if tell != nil {
			tell(sent)
		}
	}
	if cut > 0 {
		panic(http.ErrAbortHandler)
	}
}

func leftovers(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(dir, "images", partialsDir))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Connections that break cost no byte twice.
func TestResumeInPull(t *testing.T) {
	for _, c := range []struct {
		name    string
		cut     int64
		times   int
		ranges  bool
		most    float64 // what may be sent, in lengths of the layer
		failure string
	}{
		{"one break", 3 << 20, 1, true, 1, ""},
		{"many, with progress", 2 << 20, 5, true, 1, ""},
		{"no ranges: the layer is fetched again", 3 << 20, 1, false, 1.8, ""},
		{"no ranges, again and again", 3 << 20, 99, false, 1.5, "EOF"},
		{"no progress", 100 << 10, 99, true, 1, "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFlaky(t)
			f.cut, f.times, f.ranges = c.cut, c.times, c.ranges
			s, dir := newStore(t, nil)
			_, err := s.Pull(t.Context(), f.ref, authn.AuthConfig{})
			if (err == nil) != (c.failure == "") || err != nil && !strings.Contains(err.Error(), c.failure) {
				t.Fatalf("%v", err)
			}
			f.mu.Lock() // a server may still be sending what nobody reads
			defer f.mu.Unlock()
			if most := int64(c.most * float64(len(f.layer))); f.sent > most {
				t.Errorf("%d bytes were sent, at most %d are needed; asked for %q", f.sent, most, f.asked)
			}
			if n := leftovers(t, dir); err == nil && n > 0 {
				t.Errorf("%d beginnings are left", n)
			}
		})
	}
}

// A pull that was ended is continued by another process.
func TestResumeAfterRestart(t *testing.T) {
	f := newFlaky(t)
	s, dir := newStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	f.onSent = func(n int64) {
		if n > 6<<20 {
			cancel()
		}
	}
	if _, err := s.Pull(ctx, f.ref, authn.AuthConfig{}); err == nil {
		t.Fatal("a pull that was cancelled succeeded")
	}
	if n := leftovers(t, dir); n != 1 {
		t.Fatalf("%d beginnings are kept", n)
	}
	f.mu.Lock()
	f.onSent, f.asked = nil, nil
	f.mu.Unlock()
	again, err := Open(filepath.Join(dir, "images"), s.layers, nil, nil, s.log, s.now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Pull(t.Context(), f.ref, authn.AuthConfig{}); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	from, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(f.asked[0], "bytes="), "-"), 10, 64)
	if err != nil || from < 1<<16 {
		t.Errorf("asked for %q after a restart", f.asked)
	}
	if n := leftovers(t, dir); n > 0 {
		t.Errorf("%d beginnings are left", n)
	}
}

// What was kept and is not the layer's beginning is found out and fetched anew.
func TestResumeBroken(t *testing.T) {
	f := newFlaky(t)
	s, dir := newStore(t, nil)
	f.cut, f.times, f.ranges = 9<<20, 99, false
	if _, err := s.Pull(t.Context(), f.ref, authn.AuthConfig{}); err == nil {
		t.Fatal("broken connections made a whole layer")
	}
	list, err := filepath.Glob(filepath.Join(dir, "images", partialsDir, "*"))
	if err != nil || len(list) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	b, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0xff
	if err := os.WriteFile(list[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.ranges, f.times = true, 0
	f.mu.Unlock()
	if _, err := s.Pull(t.Context(), f.ref, authn.AuthConfig{}); err != nil {
		t.Fatal(err)
	}
	if n := leftovers(t, dir); n > 0 {
		t.Errorf("%d beginnings are left", n)
	}
}

// Old beginnings are removed at the start.
func TestOldPartials(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	old, young := filepath.Join(dir, "sha256-1"), filepath.Join(dir, "sha256-2")
	for f, age := range map[string]int{old: 25, young: 23} {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		when := now.Add(-time.Duration(age) * time.Hour)
		if err := os.Chtimes(f, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openPartials(dir, now); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("an old beginning is kept")
	}
	if _, err := os.Stat(young); err != nil {
		t.Error("a young beginning is gone")
	}
}
