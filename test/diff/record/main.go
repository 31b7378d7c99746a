// Command record runs upstream's API server on an etcd and writes down what it
// answers to the corpus:
//
//	go run ./test/diff/record -bin .cache/conformance/bin
//
// make record builds both programs first, from their Go modules.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"knarr.dev/knarr/test/diff"
)

func main() {
	bin := flag.String("bin", ".cache/conformance/bin", "folder of kube-apiserver and etcd")
	dir := flag.String("dir", "test/diff", "folder of corpus and recorded")
	flag.Parse()
	if err := record(context.Background(), *bin, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(ctx context.Context, bin, dir string) error {
	corpus, err := diff.Load(filepath.Join(dir, "corpus"))
	if err != nil {
		return err
	}
	up, err := startUpstream(ctx, bin)
	if err != nil {
		return err
	}
	defer up.stop()
	if err := up.server.Prepare(ctx); err != nil {
		return err
	}
	if err := forms(ctx, up.server, corpus, dir); err != nil {
		return err
	}
	cases := 0
	for file, list := range corpus {
		out := map[string]*diff.Verdict{}
		for _, c := range list {
			v, err := up.server.Ask(ctx, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
			if out[c.Name] != nil {
				return fmt.Errorf("%s: two cases are called so", c.Name)
			}
			out[c.Name] = v
			cases++
		}
		if err := write(filepath.Join(dir, "recorded", file+".json"), out); err != nil {
			return err
		}
	}
	fmt.Printf("%d cases of %d files recorded\n", cases, len(corpus))
	return nil
}

// forms records discovery, and how one object of each kind looks as a table.
func forms(ctx context.Context, s *diff.Server, corpus map[string][]diff.Case, dir string) error {
	d, err := s.Discover(ctx)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "recorded", "discovery.json"), d); err != nil {
		return err
	}
	tables := map[string]*diff.Table{}
	for _, list := range corpus {
		for _, c := range list {
			if !c.First {
				continue
			}
			if tables[c.Name], err = s.AskTable(ctx, c); err != nil {
				return err
			}
		}
	}
	return write(filepath.Join(dir, "recorded", "tables.json"), tables)
}

func write(path string, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(v); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// upstream is a running kube-apiserver with its etcd.
type upstream struct {
	server *diff.Server
	procs  []*exec.Cmd
	dir    string
}

func (u *upstream) stop() {
	for i := len(u.procs) - 1; i >= 0; i-- {
		_ = u.procs[i].Process.Signal(syscall.SIGTERM)
		_ = u.procs[i].Wait()
	}
	os.RemoveAll(u.dir)
}

func startUpstream(ctx context.Context, bin string) (u *upstream, err error) {
	u = &upstream{}
	if u.dir, err = os.MkdirTemp("", "knarr-record-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			u.stop()
		}
	}()
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(u.dir, name) }
	const token = "corpus"
	if err := os.WriteFile(in("tokens.csv"), []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", in("sa.key")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a key: %w: %s", err, out)
	}
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	if err := u.start(ctx, in("etcd.log"), filepath.Join(bin, "etcd"), "--data-dir", in("etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[1])); err != nil {
		return nil, err
	}
	if err := u.start(ctx, in("apiserver.log"), filepath.Join(bin, "kube-apiserver"), "--etcd-servers="+etcd, "--cert-dir="+in("certs"), "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", ports[2]), "--token-auth-file="+in("tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-signing-key-file="+in("sa.key"), "--service-account-key-file="+in("sa.key"), "--allow-privileged=true"); err != nil {
		return nil, err
	}
	u.server = &diff.Server{URL: fmt.Sprintf("https://127.0.0.1:%d", ports[2]), Client: &http.Client{Transport: bearer{token, &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a server of our own on loopback
	}}}}
	return u, u.ready(ctx)
}

func (u *upstream) start(ctx context.Context, log, program string, args ...string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	c := exec.CommandContext(ctx, program, args...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		return fmt.Errorf("%s: %w: make record builds it", program, err)
	}
	u.procs = append(u.procs, c)
	return nil
}

// ready waits until the server's start-up has ended.
func (u *upstream) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.server.URL+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := u.server.Client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b, _ := os.ReadFile(filepath.Join(u.dir, "apiserver.log"))
			return fmt.Errorf("upstream's API server is not ready after a minute:\n%s", b[max(0, len(b)-3000):])
		}
	}
}

// bearer adds a token to each request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

func freePorts(n int) ([]int, error) {
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out, nil
}
