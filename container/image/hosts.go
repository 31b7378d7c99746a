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

func parseHosts(text, registry, dir string) ([]host, error) {
	tables, err := parseTOML(text)
	if err != nil {
		return nil, err
	}
	server := "https://" + registry
	if registry == "docker.io" {
		server = "https://registry-1.docker.io"
	}
	if s, ok := tables[0].keys["server"]; ok {
		if server, ok = s.(string); !ok {
			return nil, errors.New("server must be a string")
		}
	}
	// The first table's other keys are the origin's.
	delete(tables[0].keys, "server")
	origin, err := newHost(server, tables[0].keys, dir)
	if err != nil {
		return nil, err
	}
	var list []host
	for _, t := range tables[1:] {
		switch {
		case t.name[0] == "host" && len(t.name) == 2:
			h, err := newHost(t.name[1], t.keys, dir)
			if err != nil {
				return nil, err
			}
			list = append(list, *h)
		case t.name[0] == "host" && len(t.name) == 3 && t.name[2] == "header" && len(list) > 0:
			setHeader(&list[len(list)-1], t.keys)
		case t.name[0] == "header" && len(t.name) == 1:
			setHeader(origin, t.keys)
		default:
			return nil, fmt.Errorf("unknown table %s", strings.Join(t.name, "."))
		}
	}
	return append(list, *origin), nil
}

func setHeader(h *host, keys map[string]any) {
	h.header = http.Header{}
	for k, v := range keys {
		for _, s := range texts(v) {
			h.header.Add(k, s)
		}
	}
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
	in := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	for k, v := range keys {
		switch k {
		case "capabilities":
			if h.resolve = slices.Contains(texts(v), "resolve"); !h.resolve && !slices.Contains(texts(v), "pull") {
				return nil, fmt.Errorf("host %s can neither pull nor resolve: remove it", address)
			}
		case "skip_verify":
			h.skipVerify, _ = v.(bool)
		case "override_path":
			h.overridePath, _ = v.(bool)
		case "ca":
			for _, f := range texts(v) {
				h.roots = append(h.roots, in(f))
			}
		case "client":
			pairs, ok := v.([]any)
			if !ok {
				pairs = []any{v}
			}
			for _, p := range pairs {
				switch files := texts(p); len(files) {
				case 1:
					h.clients = append(h.clients, [2]string{in(files[0]), in(files[0])})
				case 2:
					h.clients = append(h.clients, [2]string{in(files[0]), in(files[1])})
				default:
					return nil, fmt.Errorf("host %s: client wants a file, or pairs of certificate and key", address)
				}
			}
		default:
			return nil, fmt.Errorf("host %s: unknown key %s", address, k)
		}
	}
	return h, nil
}

// texts are the strings of a string or an array of such.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var list []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				list = append(list, s)
			}
		}
		return list
	}
	return nil
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
