// Package apitest runs a whole API server for tests: TLS, client certificates,
// RBAC and admission, on a store in memory or on a real etcd in a folder of the
// test's. It has no controllers and no nodes. Shared objects are watched for
// changes: a test during which somebody writes to one fails with its name.
package apitest

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/api"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver"
	"knarr.dev/knarr/apiserver/admission"
	"knarr.dev/knarr/apiserver/aggregate"
	"knarr.dev/knarr/apiserver/audit"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/node"
	"knarr.dev/knarr/apiserver/bootstrap"
	"knarr.dev/knarr/apiserver/crd"
	"knarr.dev/knarr/apiserver/flow"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/webhook"
	"knarr.dev/knarr/kit/pki"
	"knarr.dev/knarr/store"
)

// Options change what Start makes; the zero value is a server in memory.
type Options struct {
	// Etcd keeps the state in an embedded etcd in a folder of the test's.
	Etcd bool
	// Store is used instead, if set; it is closed when the test ends.
	Store store.Store
	// Services are the ranges; zero: 10.96.0.0/16 and 30000 to 32767.
	Services registry.ServiceRanges
	// Kinds are served instead of api.Kinds, if set.
	Kinds []*kind.Kind
	// Seats are how many requests are served at once; 0: as usual.
	Seats int
	// FlowObjects keeps the FlowSchemas and levels of every cluster.
	FlowObjects bool
	// Audit writes down who did what.
	Audit *audit.Auditor
	// Admission changes what admission is made of.
	Admission func(*admission.Deps)
	// Bearers recognise further bearer tokens; Anonymous permits requests without
	// credentials.
	Bearers   []auth.Bearer
	Anonymous func(path string) bool
	// Kubelet reaches agents.
	Kubelet http.RoundTripper
	// Resolve finds the services of webhooks; nil: as the server does.
	Resolve webhook.Resolver
	// ClusterInfo is published to machines that join.
	ClusterInfo string
	// Extensions makes what extension servers read at their start.
	Extensions bool
	// Unwatched leaves out the detector of changed shared objects, for benchmarks.
	Unwatched bool
}

// Server is a running API server.
type Server struct {
	URL         string
	Store       store.Store
	Registry    *registry.Registry
	Authz       *auth.Chain
	Tokens      *auth.Tokens
	CA          *pki.Authority
	Definitions *crd.Definitions
	// FrontProxy is the authority of proxies that name users in headers.
	FrontProxy *pki.Authority
	Aggregate  *aggregate.Aggregator
	// Flow shares the capacity.
	Flow *flow.Controller
	// Handler answers without a network in between; it knows users by tokens.
	Handler http.Handler
}

// Start runs a server until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	ctx := t.Context()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if o.Services == (registry.ServiceRanges{}) {
		o.Services = registry.ServiceRanges{ClusterIPs: netip.MustParsePrefix("10.96.0.0/16"), NodePortMin: 30000, NodePortMax: 32767}
	}
	if o.Kinds == nil {
		o.Kinds = api.Kinds()
	}
	s := &Server{Store: openStore(t, o)}
	dir := t.TempDir()
	var err error
	if s.CA, err = pki.Open(dir, time.Now); err != nil {
		t.Fatal(err)
	}
	if s.FrontProxy, err = pki.Open(filepath.Join(dir, "front-proxy"), time.Now); err != nil {
		t.Fatal(err)
	}
	sealer, err := store.OpenSealer(filepath.Join(dir, "secrets.key"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Tokens, err = auth.OpenTokens(filepath.Join(dir, "sa.key"), "https://kubernetes.default.svc.cluster.local", time.Now); err != nil {
		t.Fatal(err)
	}
	look := &apiserver.Lookup{}
	s.Authz = auth.NewChain(ctx, &auth.RBAC{Roles: look}, node.New(look.Graph()))
	resolve := o.Resolve
	if resolve == nil {
		resolve = look.ServiceAddress
	}
	deps := look.Admission(s.Authz, webhook.New(resolve), time.Now, log)
	if o.Admission != nil {
		o.Admission(&deps)
	}
	cfg := registry.Config{
		Store: s.Store, Sealer: sealer, Kinds: o.Kinds, SingleServer: true, Services: o.Services,
		Admit: admission.List(deps),
		Now:   time.Now, Log: log,
	}
	if !o.Unwatched {
		cfg.Mutated = func(key, change string) { t.Errorf("shared object %s was changed: %s", key, change) }
	}
	if s.Registry, err = registry.Open(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	look.Registry, s.Tokens.Live = s.Registry, look.Live
	proxy, err := s.FrontProxy.Client(auth.FrontProxyName)
	if err != nil {
		t.Fatal(err)
	}
	s.Aggregate = aggregate.New(aggregate.Config{
		Registry: s.Registry, Resolve: resolve, FrontProxy: proxy.TLS, Now: time.Now, Log: log,
		Local: func() []aggregate.Local { return apiserver.LocalVersions(s.Registry) },
	})
	s.Flow = flow.New(flow.Config{Registry: s.Registry, Seats: o.Seats, Now: time.Now, Log: log})
	srv := apiserver.New(ctx, apiserver.Config{
		Registry: s.Registry, Aggregate: s.Aggregate, Flow: s.Flow, Audit: o.Audit, Authn: &auth.Authenticator{Tokens: s.Tokens, Bearers: append(look.Bearers(s.Tokens, time.Now, log), o.Bearers...), Anonymous: o.Anonymous, FrontProxy: s.FrontProxy.Cert}, Authz: s.Authz, Tokens: s.Tokens,
		Version: version.Info{Major: "1", Minor: "36", GitVersion: "v1.36.3+knarr"},
		Kubelet: apiserver.Kubelet{Transport: o.Kubelet}, Now: time.Now, Log: log,
	})
	s.Handler = srv.Handler()
	s.Definitions = crd.New(s.Registry, webhook.New(resolve), time.Now, log)
	if err := s.Definitions.Load(ctx); err != nil {
		t.Fatal(err)
	}
	s.serve(t, srv, o)
	return s
}

func openStore(t testing.TB, o Options) store.Store {
	switch {
	case o.Store != nil:
		return o.Store
	case !o.Etcd:
		return store.NewMemory()
	}
	st, err := store.OpenEmbedded(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// serve runs the registry and the server, and makes the first objects.
func (s *Server) serve(t testing.TB, srv *apiserver.Server, o Options) {
	pair, err := s.CA.Server("kube-apiserver", nil, []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.URL = "https://" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	feeding, stopFeeding := context.WithCancel(context.WithoutCancel(ctx))
	served, fed := make(chan error, 1), make(chan error, 1)
	go func() { fed <- s.Registry.Run(feeding) }()
	defining := make(chan error, 1)
	go func() { defining <- s.Definitions.Run(ctx) }()
	aggregating := make(chan error, 1)
	go func() { aggregating <- s.Aggregate.Run(ctx) }()
	flowing := make(chan error, 1)
	go func() {
		if !o.FlowObjects {
			flowing <- nil
			return
		}
		flowing <- s.Flow.Run(ctx)
	}()
	clients := s.CA.Pool()
	clients.AddCert(s.FrontProxy.Cert)
	go func() {
		served <- srv.Serve(ctx, l, &tls.Config{
			Certificates: []tls.Certificate{pair.TLS}, MinVersion: tls.VersionTLS12,
			ClientCAs: clients, ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"},
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("API server: %v", err)
		}
		if err := <-defining; err != nil {
			t.Errorf("definitions: %v", err)
		}
		if err := <-aggregating; err != nil {
			t.Errorf("aggregation: %v", err)
		}
		if err := <-flowing; err != nil {
			t.Errorf("flow control: %v", err)
		}
		s.Registry.CheckShared()
		stopFeeding()
		if err := <-fed; err != nil {
			t.Errorf("registry: %v", err)
		}
		if err := s.Store.Close(); err != nil {
			t.Errorf("store: %v", err)
		}
	})
	// Endpoints may not be loopback addresses; nobody connects to this one.
	addr := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddrPort(l.Addr().String()).Port())
	first := bootstrap.Cluster{ServiceIP: netip.MustParseAddr("10.96.0.1"), Endpoint: addr, ClusterInfo: o.ClusterInfo}
	if o.Extensions {
		first.ClientCA, first.FrontProxyCA = s.CA.PEM, s.FrontProxy.PEM
	}
	if err := bootstrap.Run(ctx, s.Registry, first); err != nil {
		t.Fatal(err)
	}
}

// As returns the configuration of a user with a client certificate.
func (s *Server) As(t testing.TB, user string, groups ...string) *rest.Config {
	t.Helper()
	pair, err := s.CA.Client(user, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return &rest.Config{
		Host: s.URL, QPS: -1, UserAgent: "apitest/1.0",
		TLSClientConfig: rest.TLSClientConfig{CAData: s.CA.PEM, CertData: pair.CertPEM, KeyData: pair.KeyPEM},
	}
}

// Admin returns the configuration of a member of system:masters.
func (s *Server) Admin(t testing.TB) *rest.Config { return s.As(t, "admin", auth.GroupMasters) }

// AdminToken returns the token of a service account that may do everything.
func (s *Server) AdminToken(t testing.TB) string {
	t.Helper()
	c := s.Client(t)
	const ns, name = metav1.NamespaceSystem, "apitest-admin"
	if _, err := c.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: name}},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	tr, err := c.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return tr.Status.Token
}

// Client returns the administrator's typed client.
func (s *Server) Client(t testing.TB) *kubernetes.Clientset {
	t.Helper()
	return ClientOf(t, s.Admin(t))
}

// ClientOf returns a typed client.
func ClientOf(t testing.TB, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// HTTP returns a client that speaks as the configuration's user.
func HTTP(t testing.TB, cfg *rest.Config) *http.Client {
	t.Helper()
	c, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Namespace makes a namespace.
func (s *Server) Namespace(t testing.TB, name string) {
	t.Helper()
	_, err := s.Client(t).CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}
