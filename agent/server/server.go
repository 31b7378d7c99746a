// Package server is the kubelet API of a node.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/view"
	"knarr.dev/knarr/cri"
)

// Config is what a Server needs.
type Config struct {
	CRI       *cri.Client
	Pods      func() []*corev1.Pod
	Find      func(namespace, name, uid string) (*corev1.Pod, *view.Pod, bool)
	LogRoot   string
	NodeName  string
	Authorize func(*http.Request) error // nil: everybody may
	Clock     clock.PassiveClock
	Log       *slog.Logger
}

// Server answers the kubelet API. Make one with New.
type Server struct {
	cfg Config
	mux *http.ServeMux
}

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	return s
}

// Serve answers requests on l until ctx ends; t nil means without TLS.
func (s *Server) Serve(ctx context.Context, l net.Listener, t *tls.Config) error {
	hs := &http.Server{Handler: s.mux, ReadHeaderTimeout: 10 * time.Second}
	if t != nil {
		l = tls.NewListener(l, t)
	}
	stop := context.AfterFunc(ctx, func() { hs.Close() })
	defer stop()
	if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}
