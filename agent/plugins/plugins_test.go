package plugins

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/utils/clock"
)

// plugin is one that tells what it was told.
type plugin struct {
	registerapi.UnimplementedRegistrationServer
	info *registerapi.PluginInfo
	told chan *registerapi.RegistrationStatus
}

func (p *plugin) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return p.info, nil
}

func (p *plugin) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	p.told <- s
	return &registerapi.RegistrationStatusResponse{}, nil
}

func serve(t *testing.T, path string, info *registerapi.PluginInfo) (*plugin, func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p := &plugin{info: info, told: make(chan *registerapi.RegistrationStatus, 100)}
	s := grpc.NewServer()
	registerapi.RegisterRegistrationServer(s, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	stop := func() { s.Stop(); <-done; os.Remove(path) }
	t.Cleanup(stop)
	return p, stop
}

type handler struct {
	refuse error
	came   chan Plugin
	left   chan Plugin
}

func (h *handler) Register(_ context.Context, p Plugin) error {
	h.came <- p
	return h.refuse
}
func (h *handler) Deregister(p Plugin) { h.left <- p }

func within[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing within ten seconds", what)
		panic("unreachable")
	}
}

func TestPluginsComeAndGo(t *testing.T) {
	dir := t.TempDir()
	h := &handler{came: make(chan Plugin, 100), left: make(chan Plugin, 100)}
	no := &handler{came: make(chan Plugin, 100), left: make(chan Plugin, 100), refuse: errors.New("not today")}
	r := &Registry{Dir: filepath.Join(dir, "r"), Handlers: map[string]Handler{"DRAPlugin": h, "CSIPlugin": no}, Clock: clock.RealClock{}, Log: slog.New(slog.DiscardHandler)}
	if err := os.Mkdir(r.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	early, _ := serve(t, filepath.Join(r.Dir, "early.sock"), &registerapi.PluginInfo{Type: "DRAPlugin", Name: "early", SupportedVersions: []string{"v1"}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	if p := within(t, "a plugin that was there", h.came); p.Name != "early" || p.Endpoint != filepath.Join(r.Dir, "early.sock") || len(p.Versions) != 1 {
		t.Errorf("%+v", p)
	}
	if s := within(t, "its answer", early.told); !s.PluginRegistered || s.Error != "" {
		t.Errorf("told %v", s)
	}
	// In a folder that is made later, with another endpoint.
	sub := filepath.Join(r.Dir, "driver")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	_, stop := serve(t, filepath.Join(sub, "reg.sock"), &registerapi.PluginInfo{Type: "DRAPlugin", Name: "late", Endpoint: "/run/late.sock"})
	if p := within(t, "a plugin that came later", h.came); p.Name != "late" || p.Endpoint != "/run/late.sock" {
		t.Errorf("%+v", p)
	}
	stop()
	if p := within(t, "the end of it", h.left); p.Name != "late" {
		t.Errorf("%+v", p)
	}
	// One that is refused is told why, and tried again.
	refused, _ := serve(t, filepath.Join(r.Dir, "refused.sock"), &registerapi.PluginInfo{Type: "CSIPlugin", Name: "refused"})
	for range 2 {
		if s := within(t, "a refusal", refused.told); s.PluginRegistered || s.Error != "not today" {
			t.Errorf("told %v", s)
		}
	}
	other, _ := serve(t, filepath.Join(r.Dir, "other.sock"), &registerapi.PluginInfo{Type: "Other", Name: "other"})
	if s := within(t, "an unknown type", other.told); s.PluginRegistered || s.Error == "" {
		t.Errorf("told %v", s)
	}
	// One that is replaced at its path is another.
	p2, err := os.Stat(filepath.Join(r.Dir, "early.sock"))
	if err != nil || p2 == nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.Dir, "refused.sock"), filepath.Join(r.Dir, "early.sock")); err != nil {
		t.Fatal(err)
	}
	if p := within(t, "the end of the one replaced", h.left); p.Name != "early" {
		t.Errorf("%+v", p)
	}
}
