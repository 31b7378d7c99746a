// Package server is the kubelet API of a node: pods, logs, streaming into
// containers, statistics and metrics. Paths and parameters are those of the
// kubelet, so API servers, kubectl and metrics collectors work unchanged.
package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/logs"
	"knarr.dev/knarr/agent/metrics"
	"knarr.dev/knarr/agent/usage"
	"knarr.dev/knarr/agent/view"
	"knarr.dev/knarr/cri"
)

// Config is what a Server needs.
type Config struct {
	CRI  *cri.Client
	Pods func() []*corev1.Pod
	// Find returns a pod and its containers; an empty uid matches any.
	Find func(namespace, name, uid string) (*corev1.Pod, *view.Pod, bool)
	// Changed returns a channel that is closed when a pod's containers change.
	Changed func(uid string) <-chan struct{}
	Node    func() *corev1.Node
	Usage   *usage.Meter
	Metrics *metrics.Metrics
	// Settings are answered at /configz: a kubelet.config.k8s.io/v1beta1
	// KubeletConfiguration with what is in force.
	Settings map[string]any
	// Alive tells of an agent that is stuck; nil: it never is.
	Alive func() error
	// Volumes are those of a pod's volumes that are ready, by name; nil: none are known.
	Volumes    func(uid string) map[string]string
	CgroupRoot string
	// SystemLogs is the folder that /logs/ shows; empty: /var/log.
	SystemLogs string
	LogRoot    string
	NodeName   string
	Authorize  func(*http.Request) error // nil: everybody may
	Clock      clock.PassiveClock
	Log        *slog.Logger
}

// Server answers the kubelet API. Make one with New.
type Server struct {
	cfg     Config
	mux     *http.ServeMux
	health  *checks
	watcher logs.Watcher
	// countless: the runtime has statistics and no metrics.
	countless atomic.Bool
}

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux(), health: newChecks(cfg.Alive)}
	s.health.install(s.mux)
	s.mux.HandleFunc("GET /pods", s.pods)
	s.mux.HandleFunc("GET /pods/", s.pods)
	s.mux.HandleFunc("GET /runningpods/", s.runningPods)
	s.mux.HandleFunc("GET /configz", s.configz)
	s.mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for _, p := range []string{"/{namespace}/{pod}/{container}", "/{namespace}/{pod}/{uid}/{container}"} {
		s.mux.HandleFunc("/exec"+p, s.exec)
		s.mux.HandleFunc("/attach"+p, s.attach)
		s.mux.HandleFunc("POST /run"+p, s.run)
	}
	s.mux.HandleFunc("/portForward/{namespace}/{pod}", s.portForward)
	s.mux.HandleFunc("/portForward/{namespace}/{pod}/{uid}", s.portForward)
	s.mux.HandleFunc("GET /stats/summary", s.summary)
	s.mux.HandleFunc("GET /metrics", s.ownMetrics)
	s.mux.HandleFunc("GET /metrics/resource", s.resourceMetrics)
	s.mux.HandleFunc("GET /metrics/cadvisor", s.cadvisorMetrics)
	s.mux.HandleFunc("GET /metrics/slis", s.health.metrics)
	s.mux.HandleFunc("GET /metrics/probes", func(w http.ResponseWriter, r *http.Request) { cfg.Metrics.Probes().ServeHTTP(w, r) })
	s.mux.Handle("GET /logs/", http.StripPrefix("/logs/", http.FileServer(http.Dir(cmp.Or(cfg.SystemLogs, "/var/log")))))
	// Profiles of the whole process, as the kubelet serves them.
	s.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	s.mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	s.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	s.mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return s
}

// Unauthenticated marks an error of [Config.Authorize]: it is not known who asks.
func Unauthenticated(err error) error { return unauthenticated{err} }

type unauthenticated struct{ error }

func (u unauthenticated) Unwrap() error { return u.error }

// ServeHTTP authorizes and answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Authorize != nil {
		if err := s.cfg.Authorize(r); err != nil {
			var unknown unauthenticated
			if errors.As(err, &unknown) {
				s.cfg.Log.Debug("a request was refused", "path", r.URL.Path, "from", r.RemoteAddr, "error", err)
				http.Error(w, "Unauthorized", http.StatusUnauthorized)
				return
			}
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
	}
	_, pattern := s.mux.Handler(r)
	defer s.cfg.Metrics.Request(r.Method, first(pattern), streams(pattern))()
	s.mux.ServeHTTP(w, r)
}

// first is the beginning of a pattern's path, which tells requests apart well
// enough: "GET /exec/{namespace}/{pod}" counts as exec.
func first(pattern string) string {
	_, path, ok := strings.Cut(pattern, "/")
	if !ok {
		return "other"
	}
	path, _, _ = strings.Cut(path, "/{")
	return strings.TrimSuffix(path, "/")
}

// streams tells the requests that last.
func streams(pattern string) bool {
	switch first(pattern) {
	case "exec", "attach", "portForward", "debug":
		return true
	}
	return false
}

// Serve answers requests on l until ctx ends; t nil means without TLS.
func (s *Server) Serve(ctx context.Context, l net.Listener, t *tls.Config) error {
	if t != nil {
		t = t.Clone()
		t.NextProtos = []string{"http/1.1"}
		l = tls.NewListener(l, t)
	}
	return s.serve(ctx, l, s)
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	hs := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		// Streams upgrade their connection, which HTTP/2 has no means for.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	stop := context.AfterFunc(ctx, func() { hs.Close() })
	defer stop()
	if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the kubelet API on %s: %w", l.Addr(), err)
	}
	return ctx.Err()
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// A failure to write means that the client is gone.
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) list(keep func(*corev1.Pod) bool) corev1.PodList {
	l := corev1.PodList{Items: []corev1.Pod{}}
	l.Kind, l.APIVersion = "PodList", "v1"
	for _, p := range s.cfg.Pods() {
		if keep(p) {
			l.Items = append(l.Items, *p)
		}
	}
	return l
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.list(func(*corev1.Pod) bool { return true }))
}

func (s *Server) runningPods(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.list(func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }))
}

func (s *Server) configz(w http.ResponseWriter, _ *http.Request) {
	settings := map[string]any{"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1"}
	maps.Copy(settings, s.cfg.Settings)
	writeJSON(w, map[string]any{"kubeletconfig": settings})
}

// target finds the container that a request names; it answers the request itself
// when there is none.
func (s *Server) target(w http.ResponseWriter, r *http.Request) (*corev1.Pod, *view.Pod, string, bool) {
	ns, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	pod, v, ok := s.cfg.Find(ns, name, r.PathValue("uid"))
	if !ok {
		http.Error(w, fmt.Sprintf("pod %q does not exist", name+"/"+ns), http.StatusNotFound)
		return nil, nil, "", false
	}
	return pod, v, container, true
}
