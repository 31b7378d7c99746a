package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	stdlog "log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"knarr.dev/knarr/container/snapshot"
)

// hub is a registry whose answers a test may change.
type hub struct {
	host  string
	gets  atomic.Int64 // blobs asked for
	spoil atomic.Bool  // change a byte of every blob
	auth  atomic.Bool  // ask for u:p
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{}
	inner := registry.New(registry.Logger(stdlog.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); h.auth.Load() && (user != "u" || pass != "p") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			h.gets.Add(1)
			if h.spoil.Load() {
				rec := httptest.NewRecorder()
				inner.ServeHTTP(rec, r)
				body := rec.Body.Bytes()
				body[len(body)/2] ^= 0xff
				w.WriteHeader(rec.Code)
				_, _ = w.Write(body)
				return
			}
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	h.host = strings.TrimPrefix(srv.URL, "http://")
	return h
}

func (h *hub) push(t *testing.T, repo string, layers int64) v1.Image {
	t.Helper()
	img, err := random.Image(2000, layers)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(h.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return img
}

func newStore(t *testing.T, r Registries) (*Store, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	dir := t.TempDir()
	layers, err := snapshot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(filepath.Join(dir, "images"), layers, r, nil, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func layerCount(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(dir, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestPull(t *testing.T) {
	h := newHub(t)
	img := h.push(t, "a/b:1", 3)
	s, dir := newStore(t, nil)
	ctx := context.Background()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Pull(ctx, h.host+"/a/b:1", authn.AuthConfig{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Joined or not, each layer is fetched once; the configuration may be fetched again.
	if n := layerCount(t, dir); n != 3 {
		t.Errorf("%d layers", n)
	}
	digest, _ := img.Digest()
	id, _ := img.ConfigName()
	for _, ref := range []string{h.host + "/a/b:1", h.host + "/a/b@" + digest.String(), id.String(), id.Hex[:16]} {
		if i, err := s.Get(ref); err != nil || i.ID != id.String() {
			t.Errorf("%s: %+v, %v", ref, i, err)
		}
	}
	// The tag moves on: the old image keeps its digest and loses the tag.
	h.push(t, "a/b:1", 1)
	if _, err := s.Pull(ctx, h.host+"/a/b:1", authn.AuthConfig{}); err != nil {
		t.Fatal(err)
	}
	if i, err := s.Get(id.String()); err != nil || len(i.Tags) != 0 || len(i.Digests) != 1 {
		t.Errorf("the old image is %+v, %v", i, err)
	}
	// What is on disk is what another process finds.
	again, err := Open(filepath.Join(dir, "images"), s.layers, nil, nil, slog.New(slog.DiscardHandler), time.Now)
	if err != nil || len(again.List()) != 2 {
		t.Errorf("read back: %v (%v)", again.List(), err)
	}
	if err := s.Remove(id.String(), map[string]bool{id.String(): true}); err == nil {
		t.Error("an image in use was removed")
	}
	if err := s.Remove(id.String(), nil); err != nil || layerCount(t, dir) != 1 {
		t.Errorf("after the removal %d layers are left (%v)", layerCount(t, dir), err)
	}
}

func TestPullFailures(t *testing.T) {
	h := newHub(t)
	h.push(t, "a:1", 2)
	s, dir := newStore(t, nil)
	ctx := context.Background()
	if _, err := s.Pull(ctx, h.host+"/none:1", authn.AuthConfig{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "none:1") {
		t.Errorf("a missing image: %v", err)
	}
	h.spoil.Store(true)
	if _, err := s.Pull(ctx, h.host+"/a:1", authn.AuthConfig{}); err == nil {
		t.Error("a spoilt image was taken")
	}
	if n := layerCount(t, dir); n != 0 || len(s.List()) != 0 {
		t.Errorf("a failed pull left %d layers", n)
	}
	h.spoil.Store(false)
	h.auth.Store(true)
	if _, err := s.Pull(ctx, h.host+"/a:1", authn.AuthConfig{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("without credentials: %v", err)
	}
	if _, err := s.Pull(ctx, h.host+"/a:1", authn.AuthConfig{Username: "u", Password: "p"}); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}

func TestMirror(t *testing.T) {
	h := newHub(t)
	h.push(t, "library/thing:1", 1)
	s, _ := newStore(t, Registries{"docker.io": {Mirrors: []string{"http://127.0.0.1:1", "http://" + h.host}}})
	i, err := s.Pull(context.Background(), "thing:1", authn.AuthConfig{})
	if err != nil || len(i.Tags) != 1 || i.Tags[0] != "docker.io/library/thing:1" {
		t.Errorf("through a mirror: %+v, %v", i, err)
	}
}

func TestImport(t *testing.T) {
	s, dir := newStore(t, nil)
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("example.com/x:1")
	if err != nil {
		t.Fatal(err)
	}
	tarPath, ociPath := filepath.Join(dir, "x.tar"), filepath.Join(dir, "oci")
	if err := tarball.WriteToFile(tarPath, tag, img); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Write(ociPath, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(mutate.Annotations(img, nil).(v1.Image), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "example.com/y:2"})); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{tarPath: "example.com/x:1", ociPath: "example.com/y:2"} {
		names, err := s.Import(context.Background(), path)
		if err != nil || len(names) != 1 || names[0] != want {
			t.Errorf("importing %s: %v, %v", path, names, err)
		}
	}
	if err := os.WriteFile(tarPath, bytes.Repeat([]byte("x"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(context.Background(), tarPath); err == nil {
		t.Error("rubbish was imported")
	}
}

func TestNormalize(t *testing.T) {
	for ref, want := range map[string]string{
		"busybox":                  "docker.io/library/busybox:latest",
		"a/b:1":                    "docker.io/a/b:1",
		"localhost:5000/x":         "localhost:5000/x:latest",
		"registry.k8s.io/pause:3":  "registry.k8s.io/pause:3",
		"q.io/a@sha256:" + zeros(): "q.io/a@sha256:" + zeros(),
	} {
		if got, err := Normalize(ref); err != nil || got != want {
			t.Errorf("%s is %s (%v)", ref, got, err)
		}
	}
}

func zeros() string { return strings.Repeat("0", 64) }
