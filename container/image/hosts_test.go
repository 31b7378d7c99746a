package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

func TestParseHosts(t *testing.T) {
	text := "# a comment\nserver = \"https://x\" # another\n\n[host.\"http://m:5000\"]\ncapabilities = [\n  \"pull\", # first\n  'resolve',\n]\nskip_verify=true\n[ host . 'b' . header ]\nx-y = [\"a\", \"b\"]\n[host.a]\nclient = [[\"c\", \"/k\"], \"p\"]\nca = \"root\"\n"
	list, err := parseHosts(text, "example.com", "/etc")
	if err != nil || len(list) != 4 {
		t.Fatalf("read %+v, %v", list, err)
	}
	for i, want := range []string{"http://m:5000", "https://b", "https://a", "https://x"} {
		if got := list[i].url.String(); got != want {
			t.Errorf("host %d is %s, want %s", i, got, want)
		}
	}
	if a := list[2]; !list[0].skipVerify || !slices.Equal(list[1].header["X-Y"], []string{"a", "b"}) ||
		!slices.Equal(a.clients, [][2]string{{"/etc/c", "/k"}, {"/etc/p", "/etc/p"}}) || !slices.Equal(a.roots, []string{"/etc/root"}) {
		t.Errorf("read %+v", list)
	}
	for text, want := range map[string]string{
		"a":                                   "line 1",
		"server = 1":                          "server: want a string",
		"host = 1":                            "host: want tables",
		"[host]\na = 1":                       `host."a": want a table`,
		"[host.\"ftp://x\"]":                  "want http or https",
		"mirror = 1":                          "mirror: unknown key",
		"[host.x]\nskip_verify = \"true\"":    "skip_verify: want true or false",
		"[host.x]\noverride_path = 1":         "override_path: want true or false",
		"[host.x]\ncapabilities = [1]":        "capabilities: want a string, or an array of strings",
		"[host.x]\ncapabilities = [\"push\"]": "neither pull nor resolve",
		"[host.x]\nclient = [[\"a\",\"b\",\"c\"]]": "client: want a file",
		"[host.x.header]\na = 1":                   "header: a: want a string",
	} {
		if _, err := parseHosts(text, "example.com", "/etc"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, not %q", text, err, want)
		}
	}
}

func FuzzHosts(f *testing.F) {
	for _, s := range []string{"server = \"x\"\n[host.\"y\"]\ncapabilities = [\"pull\"]", "ca=[[[['x']]]]", "[\"", "[host.x]\nclient = [[\"a\"]]"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, text string) { _, _ = parseHosts(text, "example.com", "/etc") })
}

func TestHosts(t *testing.T) {
	h := newHub(t)
	img := h.push(t, "library/thing:1", 1)
	h.push(t, "library/other:1", 1)
	var seen atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, "/proxy/cache")
		if !ok || r.Header.Get("X-Team") != "blue" {
			http.NotFound(w, r)
			return
		}
		seen.Store(r.URL.Path)
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+h.host+"/v2"+rest, nil)
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := http.DefaultClient.Do(req)
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
	}))
	t.Cleanup(proxy.Close)
	s, dir := newStore(t, nil)
	s.HostsDirs = []string{filepath.Join(dir, "none"), filepath.Join(dir, "certs.d")}
	write := func(registry, text string) {
		d := filepath.Join(dir, "certs.d", registry)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	write("docker.io", fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:2\"]\n[host.%q]\noverride_path = true\n[host.%[1]q.header]\nx-team = \"blue\"\n", proxy.URL+"/proxy/cache"))
	if i, err := s.Pull(context.Background(), "thing:1", authn.AuthConfig{}); err != nil || i.Tags[0] != "docker.io/library/thing:1" {
		t.Errorf("through hosts.toml: %+v, %v", i, err)
	}
	if p, _ := seen.Load().(string); !strings.HasPrefix(p, "/proxy/cache/library/thing/") {
		t.Errorf("the mirror was asked for %q", p)
	}
	// A host that may only pull is asked for digests alone.
	write("example.com", fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\"]\n", h.host))
	if _, err := s.Pull(context.Background(), "example.com/library/other:1", authn.AuthConfig{}); err == nil {
		t.Error("a tag was resolved by a host that may not")
	}
	if _, err := s.Pull(context.Background(), "example.com/library/thing@"+digest.String(), authn.AuthConfig{}); err != nil {
		t.Errorf("by digest: %v", err)
	}
	write("_default", fmt.Sprintf("[host.\"http://%s\"]\n", h.host))
	if _, err := s.Pull(context.Background(), "elsewhere.example/library/other:1", authn.AuthConfig{}); err != nil {
		t.Errorf("by the default: %v", err)
	}
	write("bad.example", "[mirror]\n")
	if _, err := s.Pull(context.Background(), "bad.example/x:1", authn.AuthConfig{}); err == nil || !strings.Contains(err.Error(), "mirror: unknown key") {
		t.Errorf("a malformed file: %v", err)
	}
}

// A layer that arrives broken is fetched again.
func TestFetchAgain(t *testing.T) {
	h := newHub(t)
	h.push(t, "a:1", 1)
	var broken atomic.Int64
	flaky := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Accept") == "" && broken.Add(1) <= 2 {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write([]byte("half of a layer"))
			panic(http.ErrAbortHandler)
		}
		http.Redirect(w, r, "http://"+h.host+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(flaky.Close)
	s, _ := newStore(t, nil)
	if _, err := s.Pull(context.Background(), strings.TrimPrefix(flaky.URL, "http://")+"/a:1", authn.AuthConfig{}); err != nil {
		t.Errorf("after %d broken answers: %v", broken.Load(), err)
	}
}

func TestSlowRegistry(t *testing.T) {
	h := newHub(t)
	h.push(t, "a:1", 1)
	leave := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet && h.gets.Load() > 0 {
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			select {
			case <-leave:
			case <-r.Context().Done():
			}
			return
		}
		http.Redirect(w, r, "http://"+h.host+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(leave) })
	s, dir := newStore(t, nil)
	s.stall = 50 * time.Millisecond
	_, err := s.Pull(context.Background(), strings.TrimPrefix(slow.URL, "http://")+"/a:1", authn.AuthConfig{})
	if !errors.Is(err, errStalled) {
		t.Errorf("a registry that hardly sends: %v", err)
	}
	if n := layerCount(t, dir); n != 0 {
		t.Errorf("%d layers are left", n)
	}
}

func TestGiantManifest(t *testing.T) {
	giant := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for range 64 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	t.Cleanup(giant.Close)
	s, _ := newStore(t, nil)
	if _, err := s.Pull(context.Background(), strings.TrimPrefix(giant.URL, "http://")+"/a:1", authn.AuthConfig{}); !errors.Is(err, errTooLarge) {
		t.Errorf("a manifest of 64 MiB: %v", err)
	}
}
