package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// HostsDirs are searched for <host>/hosts.toml, or _default/hosts.toml, as
// containerd describes them; the first folder that has one for a host counts.
var HostsDirs = []string{"/etc/knarr/certs.d", "/etc/containerd/certs.d"}

// host is one place at which a hosts file lets images of a registry be found.
type host struct {
	url          *url.URL
	resolve      bool // tags too, not digests alone
	skipVerify   bool
	overridePath bool // url's path is the whole of it, /v2 included
	roots        []string
	clients      [][2]string // certificate and key; the key may be in the certificate's file
	header       http.Header
}

// hostsFor reads what the operator says of a registry. The origin comes last.
// Nil without a file.
func hostsFor(dirs []string, registry string) ([]host, error) {
	for _, dir := range dirs {
		for _, name := range []string{registry, strings.Replace(registry, ":", "_", 1) + "_", "_default"} {
			if !filepath.IsLocal(name) {
				continue
			}
			file := filepath.Join(dir, name, "hosts.toml")
			data, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("reading the hosts of %s: %w", registry, err)
			}
			list, err := parseHosts(string(data), registry, filepath.Dir(file))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			return list, nil
		}
	}
	return nil, nil
}

// parseHosts reads a hosts file. The hosts count in the order of the file.
func parseHosts(text, registry, dir string) ([]host, error) {
	var file map[string]any
	meta, err := toml.Decode(text, &file)
	if err != nil {
		return nil, err
	}
	server := "https://" + registry
	if registry == "docker.io" {
		server = "https://registry-1.docker.io"
	}
	if s, ok := file["server"]; ok {
		if server, ok = s.(string); !ok {
			return nil, errors.New("server: want a string")
		}
	}
	tables := file["host"]
	// The other keys of the file are the origin's.
	delete(file, "server")
	delete(file, "host")
	origin, err := newHost(server, file, dir)
	if err != nil {
		return nil, err
	}
	byName, ok := tables.(map[string]any)
	if tables != nil && !ok {
		return nil, errors.New("host: want tables, such as [host.\"https://mirror.example\"]")
	}
	var list []host
	seen := map[string]bool{}
	for _, key := range meta.Keys() {
		if len(key) < 2 || key[0] != "host" || seen[key[1]] {
			continue
		}
		seen[key[1]] = true
		keys, ok := byName[key[1]].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("host.%q: want a table", key[1])
		}
		h, err := newHost(key[1], keys, dir)
		if err != nil {
			return nil, err
		}
		list = append(list, *h)
	}
	return append(list, *origin), nil
}

func newHost(address string, keys map[string]any, dir string) (*host, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("host %q: want http or https, and a name", address)
	}
	h := &host{url: u, resolve: true}
	for k, v := range keys {
		if err := h.set(k, v, dir); err != nil {
			return nil, fmt.Errorf("host %s: %s: %w", address, k, err)
		}
	}
	return h, nil
}

// set takes one key of a host's table in.
func (h *host) set(key string, v any, dir string) error {
	in := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	truth := func(into *bool) error {
		b, ok := v.(bool)
		if !ok {
			return errors.New("want true or false")
		}
		*into = b
		return nil
	}
	switch key {
	case "capabilities":
		list, err := texts(v)
		if err != nil {
			return err
		}
		if h.resolve = slices.Contains(list, "resolve"); !h.resolve && !slices.Contains(list, "pull") {
			return errors.New("neither pull nor resolve: remove the host")
		}
		return nil
	case "skip_verify":
		return truth(&h.skipVerify)
	case "override_path":
		return truth(&h.overridePath)
	case "ca":
		list, err := texts(v)
		for _, f := range list {
			h.roots = append(h.roots, in(f))
		}
		return err
	case "client":
		pairs, ok := v.([]any)
		if !ok {
			pairs = []any{v}
		}
		for _, p := range pairs {
			files, err := texts(p)
			if err != nil || len(files) < 1 || len(files) > 2 {
				return errors.New("want a file, or pairs of certificate and key")
			}
			h.clients = append(h.clients, [2]string{in(files[0]), in(files[len(files)-1])})
		}
		return nil
	case "header":
		keys, ok := v.(map[string]any)
		if !ok {
			return errors.New("want a table")
		}
		h.header = http.Header{}
		for k, v := range keys {
			list, err := texts(v)
			if err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
			for _, s := range list {
				h.header.Add(k, s)
			}
		}
		return nil
	}
	return errors.New("unknown key")
}

// texts are the strings of a string or an array of such.
func texts(v any) ([]string, error) {
	want := errors.New("want a string, or an array of strings")
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, len(v))
		for i, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, want
			}
			list[i] = s
		}
		return list, nil
	}
	return nil, want
}

// transport reaches the host as the file says.
func (h *host) transport(base *http.Transport) (http.RoundTripper, error) {
	t := base
	if h.skipVerify || len(h.roots)+len(h.clients) > 0 {
		t = base.Clone()
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if h.skipVerify {
			t.TLSClientConfig = insecureTLS()
		}
		if len(h.roots) > 0 {
			pool, err := x509.SystemCertPool()
			if err != nil {
				pool = x509.NewCertPool()
			}
			for _, f := range h.roots {
				data, err := os.ReadFile(f)
				if err != nil {
					return nil, fmt.Errorf("reading the authority of %s: %w", h.url.Host, err)
				}
				if !pool.AppendCertsFromPEM(data) {
					return nil, fmt.Errorf("%s, the authority of %s, has no certificate", f, h.url.Host)
				}
			}
			t.TLSClientConfig.RootCAs = pool
		}
		for _, c := range h.clients {
			pair, err := tls.LoadX509KeyPair(c[0], c[1])
			if err != nil {
				return nil, fmt.Errorf("reading the client certificate for %s: %w", h.url.Host, err)
			}
			t.TLSClientConfig.Certificates = append(t.TLSClientConfig.Certificates, pair)
		}
	}
	prefix := strings.TrimSuffix(h.url.Path, "/")
	if !h.overridePath && !strings.HasSuffix(prefix, "/v2") {
		prefix += "/v2"
	}
	return &rewriter{next: t, host: h, prefix: prefix}, nil
}

// rewriter gives requests for a host its scheme, path and header.
type rewriter struct {
	next   http.RoundTripper
	host   *host
	prefix string // in the place of /v2
}

func (r *rewriter) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != r.host.url.Host { // a token server, or where blobs are
		return r.next.RoundTrip(req)
	}
	out := req.Clone(req.Context())
	out.URL.Scheme = r.host.url.Scheme
	if rest, ok := strings.CutPrefix(out.URL.Path, "/v2"); ok {
		out.URL.Path, out.URL.RawPath = r.prefix+rest, ""
	}
	for k, v := range r.host.header {
		out.Header[k] = v
	}
	return r.next.RoundTrip(out)
}
