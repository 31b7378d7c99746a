package api

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/cmd/local"
	"knarr.dev/knarr/controller/engine"
)

// control runs controllers on a server until the test ends.
func control(t testing.TB, s *apitest.Server, clk clock.WithTicker, controllers ...engine.Controller) {
	t.Helper()
	ls := &local.Server{Registry: s.Registry, Authz: s.Authz, Tokens: s.Tokens, Now: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- engine.Run(ctx, ls.As(auth.Component("tester", auth.GroupMasters)), nobody{}, clk, slog.New(slog.DiscardHandler), controllers)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controllers: %v", err)
		}
	})
}
