package cmd

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

func TestHealthzPort(t *testing.T) {
	cfg := defaultConfig()
	further := defaultConfig().further(2, netip.MustParsePrefix("10.244.1.0/24")).cfg
	other := defaultConfig()
	other.Name = "dev"
	for what, pair := range map[string][2]int{"the node": {cfg.healthzPort(), 10248}, "a further node": {further.healthzPort(), 0}, "another instance": {other.healthzPort(), 0}} {
		if pair[0] != pair[1] {
			t.Errorf("%s: port %d, want %d", what, pair[0], pair[1])
		}
	}
	if err := yaml.UnmarshalStrict([]byte("node: {healthzPort: 0, healthzBindAddress: 0.0.0.0}"), cfg); err != nil || cfg.healthzPort() != 0 || cfg.listenHealthz(slog.Default()) != nil {
		t.Errorf("a port that is off: %d, %v", cfg.healthzPort(), err)
	}
	for _, bad := range []HealthzConfig{{HealthzPort: ptr.To(70000)}, {HealthzPort: ptr.To(-1)}, {HealthzAddress: "localhost"}} {
		c := defaultConfig()
		c.Node.HealthzConfig = bad
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), "node.healthz") {
			t.Errorf("%+v is valid: %v", bad, err)
		}
	}
}

func TestHealthzPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := defaultConfig()
	cfg.Node.HealthzPort = ptr.To(l.Addr().(*net.TCPAddr).Port)
	var text bytes.Buffer
	if got := cfg.listenHealthz(slog.New(slog.NewTextHandler(&text, nil))); got != nil || !strings.Contains(text.String(), "level=WARN") || !strings.Contains(text.String(), "node.healthzPort") {
		t.Errorf("listens at %v; log: %s", got, &text)
	}
}
