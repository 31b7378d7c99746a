// Package apiserver serves the Kubernetes API over HTTPS: who asks (auth), may
// they (RBAC), what do they want (registry), in which form (this package).
// It is the only reader of the store.
//
//	request -> panic guard, metrics -> authentication -> audit ->
//	impersonation -> fair queueing -> authorization -> { discovery, OpenAPI, health, metrics | resource handlers }
package apiserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"knarr.dev/knarr/apiserver/aggregate"
	"knarr.dev/knarr/apiserver/audit"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/flow"
	"knarr.dev/knarr/apiserver/registry"
)

// Config is what a Server is made of.
type Config struct {
	Registry *registry.Registry
	Authn    *auth.Authenticator
	Authz    *auth.Chain
	Tokens   *auth.Tokens
	Version  version.Info
	// Aggregate serves what extension servers serve; nil: there are none.
	Aggregate *aggregate.Aggregator
	// Audit writes down who did what; nil: nothing is.
	Audit *audit.Auditor
	// Flow shares the capacity fairly; nil: everybody is served at once.
	Flow *flow.Controller
	// Kubelet reaches the nodes' agents, for logs, exec, attach and port-forward.
	Kubelet Kubelet
	Now     func() time.Time
	Log     *slog.Logger
}

// Server is the API over HTTP.
type Server struct {
	reg       *registry.Registry
	authn     *auth.Authenticator
	authz     *auth.Chain
	tokens    *auth.Tokens
	version   version.Info
	kubelet   Kubelet
	aggregate *aggregate.Aggregator
	flow      *flow.Controller
	audit     *audit.Auditor
	outward   *http.Transport // to pods and services
	now       func() time.Time
	log       *slog.Logger
	metrics   *metrics
	active    inflight

	stopping context.Context // ends when the server stops: watches close
	stop     context.CancelFunc
	openapi  openAPI
	discover atomic.Pointer[discovery]
	ready    sync.Map // name of a start-up step -> error or nil
}

// New returns a server; Serve runs it.
func New(ctx context.Context, cfg Config) *Server {
	s := &Server{
		reg: cfg.Registry, authn: cfg.Authn, authz: cfg.Authz, tokens: cfg.Tokens,
		version: cfg.Version, aggregate: cfg.Aggregate, flow: cfg.Flow, audit: cfg.Audit, kubelet: cfg.Kubelet, outward: newOutward(), now: cfg.Now, log: cfg.Log, metrics: newMetrics(),
	}
	if s.flow != nil {
		s.metrics.registry.MustRegister(s.flow)
	}
	s.stopping, s.stop = context.WithCancel(ctx)
	return s
}

// shutdownGrace is how long requests under way may go on when the server stops.
const shutdownGrace = 5 * time.Second

// Serve answers requests on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener, cfg *tls.Config) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         cfg.Clone(), // serveHTTP2 adds its protocol
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       90 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000},
	}
	if err := serveHTTP2(srv); err != nil {
		return fmt.Errorf("API server on %s: %w", l.Addr(), err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(corkable{l}, "", "") }()
	select {
	case err := <-done:
		return fmt.Errorf("API server on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.stop()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	go func() {
		defer cancel()
		// Shutdown alone would wait for idle HTTP/2 connections too, for a second.
		s.active.wait(grace)
	}()
	_ = srv.Shutdown(grace) // what is still open then is closed below
	if err := srv.Close(); err != nil {
		return fmt.Errorf("API server on %s: close: %w", l.Addr(), err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type contextKey int

const userKey contextKey = 0

func userFrom(ctx context.Context) *authenticationv1.UserInfo {
	u, _ := ctx.Value(userKey).(*authenticationv1.UserInfo)
	return u
}

// Handler returns the whole API as one handler.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		growStack(true)
		s.active.begin()
		defer s.active.end()
		info := parseRequest(r)
		rec := &recorder{ResponseWriter: w}
		start := s.now()
		defer func() {
			p := recover()
			if p != nil {
				if p == http.ErrAbortHandler {
					rec.endAudit(false)
					panic(p)
				}
				s.log.Error("request failed by a defect", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				if rec.code == 0 {
					writeError(rec, r, apierrors.NewInternalError(fmt.Errorf("the server met a defect while serving this request")))
				}
			}
			rec.endAudit(p != nil)
			s.metrics.observe(&info, rec.code, s.now().Sub(start))
		}()
		s.serve(rec, r, &info)
	})
}

// growStack has the goroutine's stack grow once, while there is next to nothing on
// it, to the size that requests need. HTTP/2 serves each on a new goroutine, whose
// stack else grows twice in the depths, where moving it takes a fifteenth of a
// write's time. Being entered is all that counts: room would be cleared first.
//
//go:noinline
func growStack(enough bool) {
	if enough {
		return
	}
	var room [requestStack]byte
	touch(&room)
}

// requestStack makes a stack of 16 KiB.
const requestStack = 9 << 10

//go:noinline
func touch(*[requestStack]byte) {}

func (s *Server) serve(w *recorder, r *http.Request, info *requestInfo) {
	if openPath(info.Path) {
		if s.audit != nil {
			user, err := s.authn.Authenticate(r)
			if err != nil {
				user = auth.Anonymous()
			}
			s.beginAudit(w, r, user, info)
		}
		s.servePath(w, r, info)
		return
	}
	user, err := s.authn.Authenticate(r)
	if err != nil {
		if s.audit != nil {
			s.beginAudit(w, r, &authenticationv1.UserInfo{}, info)
		}
		writeError(w, r, apierrors.NewUnauthorized("Unauthorized"))
		return
	}
	if s.audit != nil {
		s.beginAudit(w, r, user, info)
	}
	as, err := s.impersonate(r, user)
	if err != nil {
		writeError(w, r, err)
		return
	}
	if as != user {
		trailOf(w).Impersonate(as)
		user = as
	}
	r = r.WithContext(context.WithValue(r.Context(), userKey, user))
	if s.flow != nil && !s.seat(w, r, action(user, info), info) {
		return
	}
	defer w.seats.Done()
	if err := s.authorize(r.Context(), trailOf(w), user, info); err != nil {
		writeError(w, r, err)
		return
	}
	if s.serveAggregated(w, r, info, user) {
		return
	}
	if info.IsResource {
		s.serveResource(w, r, info)
		return
	}
	s.servePath(w, r, info)
}

// openPath tells the paths that load balancers and probes read without
// credentials.
func openPath(path string) bool {
	switch path {
	case "/healthz", "/livez", "/readyz", "/version":
		return true
	}
	return false
}

// action is what authorization is asked about a request.
func action(user *authenticationv1.UserInfo, info *requestInfo) *auth.Action {
	a := &auth.Action{User: user, Verb: info.Verb}
	if !info.IsResource {
		a.Path = info.Path
		return a
	}
	a.Group, a.Version, a.Resource, a.Subresource = info.Group, info.Version, info.Resource, info.Subresource
	a.Namespace, a.Name = info.Namespace, info.Name
	a.FieldSelector, a.LabelSelector = info.FieldSelector, info.LabelSelector
	return a
}

func (s *Server) authorize(ctx context.Context, trail *audit.Trail, user *authenticationv1.UserInfo, info *requestInfo) error {
	a := action(user, info)
	decision, reason := s.authz.Authorize(ctx, a)
	if decision == auth.Permitted {
		trail.Annotate("authorization.k8s.io/decision", "allow")
		trail.Annotate("authorization.k8s.io/reason", reason)
		return nil
	}
	trail.Annotate("authorization.k8s.io/decision", "forbid")
	trail.Annotate("authorization.k8s.io/reason", reason)
	message := a.Forbidden()
	if reason != "" {
		message += ": " + reason
	}
	if !info.IsResource {
		err := apierrors.NewForbidden(noResource, "", nil)
		err.ErrStatus.Message = "forbidden: " + message
		return err
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: info.Group, Resource: info.Resource}, info.Name, errors.New(message))
}

// impersonate lets a user act as another whom the headers name, if allowed.
func (s *Server) impersonate(r *http.Request, user *authenticationv1.UserInfo) (*authenticationv1.UserInfo, error) {
	name := r.Header.Get(authenticationv1.ImpersonateUserHeader)
	groups := r.Header.Values(authenticationv1.ImpersonateGroupHeader)
	if name == "" {
		if len(groups) > 0 || r.Header.Get(authenticationv1.ImpersonateUIDHeader) != "" {
			return nil, apierrors.NewBadRequest("requested a group or uid to impersonate without impersonating a user")
		}
		return user, nil
	}
	ask := func(group, resource, sub, namespace, name string) error {
		a := &auth.Action{User: user, Verb: "impersonate", Group: group, Version: "v1", Resource: resource, Subresource: sub, Namespace: namespace, Name: name}
		if s.authz.Allowed(a) {
			return nil
		}
		return apierrors.NewForbidden(schema.GroupResource{Group: group, Resource: resource}, name, errors.New(a.Forbidden()))
	}
	as := &authenticationv1.UserInfo{Username: name, Groups: groups}
	if ns, sa, ok := auth.ServiceAccount(name); ok {
		if err := ask("", "serviceaccounts", "", ns, sa); err != nil {
			return nil, err
		}
		if len(groups) == 0 {
			as.Groups = []string{auth.GroupServiceAccounts, auth.GroupServiceAccounts + ":" + ns}
		}
	} else if err := ask("", "users", "", "", name); err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := ask("", "groups", "", "", g); err != nil {
			return nil, err
		}
	}
	if uid := r.Header.Get(authenticationv1.ImpersonateUIDHeader); uid != "" {
		if err := ask(authenticationv1.GroupName, "uids", "", "", uid); err != nil {
			return nil, err
		}
		as.UID = uid
	}
	for header, values := range r.Header {
		key, ok := strings.CutPrefix(header, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		if plain, err := url.PathUnescape(key); err == nil {
			key = plain
		}
		key = strings.ToLower(key)
		for _, v := range values {
			if err := ask(authenticationv1.GroupName, "userextras", key, "", v); err != nil {
				return nil, err
			}
		}
		if as.Extra == nil {
			as.Extra = map[string]authenticationv1.ExtraValue{}
		}
		as.Extra[key] = values
	}
	if name != "system:anonymous" && !contains(as.Groups, auth.GroupAuthenticated) {
		as.Groups = append(as.Groups, auth.GroupAuthenticated)
	}
	for header := range r.Header { // agents must not see them
		if strings.HasPrefix(header, "Impersonate-") {
			r.Header.Del(header)
		}
	}
	return as, nil
}

// recorder notes the status code of an answer.
type recorder struct {
	http.ResponseWriter
	code  int
	seats flow.Grant
	watch bool // only the beginning needs seats

	audited *audited // nil: the request is not audited
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.audited != nil && r.audited.response != nil {
		r.audited.response.Write(b)
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
		if r.watch {
			r.seats.Done()
		}
		if r.audited != nil && r.audited.lasting {
			r.audited.trail.Started(code)
		}
	}
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush implements http.Flusher for streams.
func (r *recorder) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Hijack implements http.Hijacker for upgrades.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(r.ResponseWriter).Hijack()
}
