package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	f := serve(t)
	expect := func(path string, code int, texts ...string) {
		t.Helper()
		got, text := f.get(t, path)
		for _, want := range texts {
			if got != code || !strings.Contains(text, want) {
				t.Errorf("%s: %d, no %q in %q", path, got, want, text)
			}
		}
	}
	expect("/healthz", 200, "ok")
	expect("/healthz?verbose", 200, "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n")
	expect("/healthz/none", 404, "not found")
	f.stuck = errors.New("it sleeps")
	expect("/healthz", 500, "[+]log ok\n[-]syncloop failed: it sleeps\nhealthz check failed")
	expect("/healthz/ping", 200, "ok")
	expect("/healthz/syncloop", 500, "it sleeps")
	expect("/metrics/slis", 200, `kubernetes_healthcheck{name="ping",type="healthz"} 1`, `kubernetes_healthcheck{name="syncloop",type="healthz"} 0`,
		`kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 5`,
		`kubernetes_healthchecks_total{name="syncloop",status="error",type="healthz"} 3`, `kubernetes_healthchecks_total{name="syncloop",status="success",type="healthz"} 2`)
}

// The listener for this machine alone asks nobody who he is, and has nothing else.
func TestHealthListener(t *testing.T) {
	f := serve(t)
	f.denied = true
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.server.ServeHealth(ctx, l) }()
	for path, code := range map[string]int{"/healthz": 200, "/healthz/syncloop": 200, "/metrics": 404, "/pods": 404} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != code || err != nil || code == 200 && string(text) != "ok" {
			t.Errorf("%s: %d %s, %v", path, resp.StatusCode, text, err)
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
