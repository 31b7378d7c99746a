package cni

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"knarr.dev/knarr/kit/netns"
)

// network remembers who is attached.
type network struct {
	mu  sync.Mutex
	has map[string][]netip.Addr
}

func (n *network) Attach(_ context.Context, id, netns string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if netns == "/bad" {
		return nil, errors.New("no such namespace")
	}
	n.has[id] = []netip.Addr{netip.MustParseAddr("10.1.0.7")}
	return n.has[id], nil
}

func (n *network) Detach(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.has, id)
	return nil
}

func (n *network) Attached() map[string][]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.has
}

func TestPlugin(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	call := func(version string, env ...string) (int, string) {
		t.Helper()
		var out strings.Builder
		in := `{"cniVersion":"` + version + `","name":"k","type":"knarr-cni","socket":"` + socket + `"}`
		code := Plugin(func(name string) string {
			for _, e := range env {
				if v, ok := strings.CutPrefix(e, name+"="); ok {
					return v
				}
			}
			return ""
		}, strings.NewReader(in), &out)
		return code, strings.TrimSpace(out.String())
	}
	expect := func(what string, want int, text string, code int, out string) {
		t.Helper()
		if code != want || !strings.Contains(out, text) {
			t.Errorf("%s: exit %d, %s; want %d and %s", what, code, out, want, text)
		}
	}
	id, ns, eth0 := "CNI_CONTAINERID=s1", "CNI_NETNS=/run/netns/x", "CNI_IFNAME=eth0"
	code, out := call("1.0.0", "CNI_COMMAND=ADD", id, ns, eth0)
	expect("nobody serves", 1, `"code":11`, code, out)

	n := &network{has: map[string][]netip.Addr{}}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, n, netip.MustParseAddr("10.1.0.1"), slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	for _, tc := range []struct {
		what, version string
		env           []string
		code          int
		text          string
	}{
		{"version", "1.0.0", []string{"CNI_COMMAND=VERSION"}, 0, `"supportedVersions":["0.3.0"`},
		{"an unknown version", "2.0.0", []string{"CNI_COMMAND=ADD", id, ns, eth0}, 1, `"code":1,`},
		{"check before", "1.0.0", []string{"CNI_COMMAND=CHECK", id, ns, eth0}, 1, `sandbox s1 has no address`},
		{"add", "1.0.0", []string{"CNI_COMMAND=ADD", id, ns, eth0}, 0, `"ips":[{"address":"10.1.0.7/32","gateway":"10.1.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]`},
		{"add in the old form", "0.4.0", []string{"CNI_COMMAND=ADD", id, ns, eth0}, 0, `"ips":[{"version":"4","address":"10.1.0.7/32"`},
		{"check", "1.0.0", []string{"CNI_COMMAND=CHECK", id, ns, eth0}, 0, ""},
		{"status", "1.1.0", []string{"CNI_COMMAND=STATUS"}, 0, ""},
		{"garbage collection", "1.1.0", []string{"CNI_COMMAND=GC"}, 0, ""},
		{"another link", "1.0.0", []string{"CNI_COMMAND=ADD", id, ns, "CNI_IFNAME=net1"}, 1, `"code":4`},
		{"no container", "1.0.0", []string{"CNI_COMMAND=DEL"}, 1, `"code":4`},
		{"a failure", "1.0.0", []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=s2", "CNI_NETNS=/bad", eth0}, 1, `"code":100,"msg":"no such namespace"`},
		{"delete", "1.0.0", []string{"CNI_COMMAND=DEL", id}, 0, ""},
		{"delete again", "1.0.0", []string{"CNI_COMMAND=DEL", id}, 0, ""},
		{"nonsense", "1.0.0", []string{"CNI_COMMAND=SING"}, 1, `"code":4`},
	} {
		code, out := call(tc.version, tc.env...)
		expect(tc.what, tc.code, tc.text, code, out)
		if out != "" && !json.Valid([]byte(out)) {
			t.Errorf("%s: no JSON: %s", tc.what, out)
		}
	}
	if len(n.Attached()) != 0 {
		t.Errorf("left: %v", n.Attached())
	}
}

func TestLoopback(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(path); err != nil {
		t.Fatal(err)
	}
	defer netns.Remove(path)
	var out strings.Builder
	env := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "s", "CNI_NETNS": path, "CNI_IFNAME": "lo"}
	if code := Plugin(func(n string) string { return env[n] }, strings.NewReader(`{"cniVersion":"0.3.1","name":"l","type":"loopback"}`), &out); code != 0 || !strings.Contains(out.String(), `"name":"lo"`) {
		t.Fatalf("exit %d: %s", code, out.String())
	}
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := netns.Do(ns, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		t.Errorf("the loopback link is not up: %v", err)
	}
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	one := Place{ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Name: "one"}
	two := one
	two.Name = "two"
	for range 2 { // twice is once
		for _, p := range []Place{one, two} {
			if err := p.Install("/usr/bin/knarr", "/run/"+p.Name+"/cni.sock"); err != nil {
				t.Fatal(err)
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(one.ConfDir, "10-one.conflist"))
	if err != nil || !strings.Contains(string(b), `"socket": "/run/one/cni.sock"`) {
		t.Errorf("configuration: %s, %v", b, err)
	}
	if to, err := os.Readlink(filepath.Join(one.BinDir, Program)); err != nil || to != "/usr/bin/knarr" {
		t.Errorf("plugin: %s, %v", to, err)
	}
	if err := one.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(one.link()); err != nil {
		t.Error("the other network's plugin is gone:", err)
	}
	if err := errors.Join(two.Remove(), two.Remove()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
