package cmd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/api"
	"knarr.dev/knarr/apiserver"
	"knarr.dev/knarr/apiserver/admission"
	"knarr.dev/knarr/apiserver/aggregate"
	"knarr.dev/knarr/apiserver/auth"
	authnode "knarr.dev/knarr/apiserver/auth/node"
	"knarr.dev/knarr/apiserver/bootstrap"
	"knarr.dev/knarr/apiserver/crd"
	"knarr.dev/knarr/apiserver/flow"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/typecheck"
	"knarr.dev/knarr/apiserver/webhook"
	"knarr.dev/knarr/cmd/local"
	"knarr.dev/knarr/kit/pki"
	"knarr.dev/knarr/store"
)

// controlPlane is the store and the API server.
type controlPlane struct {
	store       store.Store
	registry    *registry.Registry
	server      *apiserver.Server
	definitions *crd.Definitions
	sealer      *store.Sealer
	local       *local.Server
	ca          *pki.Authority
	admin       *pki.Pair
	kubelet     *pki.Source // the API server's client certificate for agents
	listener    net.Listener
	tls         *tls.Config
	log         *slog.Logger
	aggregate   *aggregate.Aggregator
	flow        *flow.Controller
	audit       *auditing
	frontProxy  *pki.Authority // of proxies that name users in headers
	proxy       *pki.Pair      // the server's own certificate as such a proxy
	authn       *auth.Authenticator
}

// issuer names the service account tokens' issuer.
func (c *Config) issuer() string { return "https://kubernetes.default.svc." + c.Network.Domain }

// openControlPlane loads the state and binds the API's port; nothing runs yet.
func openControlPlane(ctx context.Context, cfg *Config, log *slog.Logger) (cp *controlPlane, err error) {
	cp = &controlPlane{log: log}
	defer func() {
		if err != nil {
			cp.close()
		}
	}()
	// The port first: it is the likeliest thing to be taken, and cheap to find out.
	if cp.listener, err = listen("api.listen", cfg.API.Listen); err != nil {
		return cp, err
	}
	if cp.store, err = openStore(ctx, cfg); err != nil {
		return cp, err
	}
	pkiDir := filepath.Join(cfg.DataDir, "pki")
	if cp.ca, err = pki.Open(pkiDir, time.Now); err != nil {
		return cp, err
	}
	if cp.frontProxy, err = pki.Open(filepath.Join(pkiDir, "front-proxy"), time.Now); err != nil {
		return cp, err
	}
	if err := cp.certificates(cfg); err != nil {
		return cp, err
	}
	if cp.sealer, err = store.OpenSealer(filepath.Join(pkiDir, "secrets.key")); err != nil {
		return cp, err
	}
	tokens, err := auth.OpenTokens(filepath.Join(pkiDir, "sa.key"), cfg.issuer(), time.Now)
	if err != nil {
		return cp, err
	}
	var lo, hi int32
	if _, err := fmt.Sscanf(cfg.Network.NodePorts, "%d-%d", &lo, &hi); err != nil {
		return cp, fmt.Errorf("network.nodePorts %q: %w", cfg.Network.NodePorts, err)
	}
	look := &apiserver.Lookup{}
	authz, err := cfg.API.authorization(ctx, authnode.New(look.Graph()), &auth.RBAC{Roles: look}, log)
	if err != nil {
		return cp, err
	}
	caller := webhook.New(look.ServiceAddress)
	deps := look.Admission(authz, caller, time.Now, log)
	deps.PodSecurity, deps.EventLimits = cfg.PodSecurity, cfg.EventLimits
	cp.registry, err = registry.Open(ctx, registry.Config{
		Store: cp.store, Sealer: cp.sealer, Kinds: api.Kinds(), SingleServer: len(cfg.Store.Endpoints) == 0,
		Services: registry.ServiceRanges{ClusterIPs: netip.MustParsePrefix(cfg.Network.ServiceCIDR), NodePortMin: lo, NodePortMax: hi},
		Admit:    admission.List(deps),
		Mutated:  mutationReport(log), Now: time.Now, Log: log,
	})
	if err != nil {
		return cp, err
	}
	look.Registry = cp.registry
	cp.authn = &auth.Authenticator{Tokens: tokens, Bearers: look.Bearers(tokens, time.Now, log), Anonymous: bootstrap.PublicPath, FrontProxy: cp.frontProxy.Cert}
	if err := cfg.API.authentication(cp.authn); err != nil {
		return cp, err
	}
	tokens.Live = look.Live
	cp.definitions = crd.New(cp.registry, caller, time.Now, log)
	if err := cp.definitions.Load(ctx); err != nil {
		return cp, err
	}
	cp.local = &local.Server{Registry: cp.registry, Authz: authz, Tokens: tokens, Now: time.Now}
	cp.aggregate = aggregate.New(aggregate.Config{
		Registry: cp.registry, Resolve: look.ServiceAddress, FrontProxy: cp.proxy.TLS, Now: time.Now, Log: log,
		Local: func() []aggregate.Local { return apiserver.LocalVersions(cp.registry) },
	})
	cp.local.Extensions = local.NewExtensions(ctx, cp.aggregate, cp.loopback(), log)
	if cp.audit, err = openAudit(cfg.Audit, log); err != nil {
		return cp, err
	}
	cp.flow = flow.New(flow.Config{Registry: cp.registry, Seats: cfg.API.MaxRequests, Now: time.Now, Log: log})
	cp.server = apiserver.New(ctx, apiserver.Config{
		Registry: cp.registry, Aggregate: cp.aggregate, Flow: cp.flow, Audit: cp.audit.auditor(), Authn: cp.authn, Authz: authz, Tokens: tokens, Version: apiVersion(),
		Kubelet: apiserver.Kubelet{Transport: cp.kubeletTransport()}, Now: time.Now, Log: log,
	})
	return cp, nil
}

// mutationReport is on when KNARR_DEBUG=mutation: a component that writes to an
// object that it shares with others is a defect that must not go unseen.
func mutationReport(log *slog.Logger) func(key, change string) {
	if os.Getenv("KNARR_DEBUG") != "mutation" {
		return nil
	}
	return func(key, change string) {
		log.Error("shared object was changed", "object", key, "change", change)
		panic("shared object " + key + " was changed: " + change)
	}
}

// reseal seals with the present key what a former one has sealed.
func (cp *controlPlane) reseal(ctx context.Context) error {
	n, err := cp.registry.Reseal(ctx)
	switch {
	case err == nil:
		cp.log.Info("former encryption keys are no longer needed", "sealed anew", n)
	case ctx.Err() == nil: // what is not done yet is still read with the former key
		cp.log.Error("not everything could be sealed with the new key: it is tried again at the next start", "error", err)
	}
	return nil
}

// loopback is an administrator's way to this server. The port is this process's own:
// its certificate, which may be a stranger's, need not prove it.
func (cp *controlPlane) loopback() *rest.Config {
	addr := *cp.listener.Addr().(*net.TCPAddr)
	if addr.IP.IsUnspecified() {
		addr.IP = net.IPv4(127, 0, 0, 1)
	}
	return &rest.Config{
		Host:            "https://" + addr.String(),
		TLSClientConfig: rest.TLSClientConfig{Insecure: true, CertData: cp.admin.CertPEM, KeyData: cp.admin.KeyPEM},
	}
}

// follow runs what follows the configurations of the API server itself.
func (cp *controlPlane) follow(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return typecheck.New(cp.registry, cp.log).Run(ctx) })
	g.Go(func() error { return cp.aggregate.Run(ctx) })
	g.Go(func() error { return cp.flow.Run(ctx) })
	if cp.sealer.Rotated() {
		g.Go(func() error { return cp.reseal(ctx) })
	}
	cp.audit.run(ctx, g)
	g.Go(func() error {
		<-ctx.Done()
		cp.local.Extensions.Close()
		return nil
	})
}

func (cp *controlPlane) close() {
	cp.audit.close()
	if cp.listener != nil {
		cp.listener.Close()
	}
	if cp.store != nil {
		cp.store.Close()
	}
}

// listen binds a TCP address; field names it in the error.
func listen(field, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: stop what uses it, or choose another address", field, err)
	}
	return l, nil
}

func openStore(ctx context.Context, cfg *Config) (store.Store, error) {
	if len(cfg.Store.Endpoints) == 0 {
		return opened(store.OpenEmbedded(ctx, filepath.Join(cfg.DataDir, "store")))
	}
	c := clientv3.Config{Endpoints: cfg.Store.Endpoints, DialTimeout: 5 * time.Second}
	if cfg.Store.CAFile != "" {
		pool := x509.NewCertPool()
		pem, err := os.ReadFile(cfg.Store.CAFile)
		if err != nil {
			return nil, fmt.Errorf("store.caFile: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("store.caFile %s: no certificate in it", cfg.Store.CAFile)
		}
		c.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		if cfg.Store.CertFile != "" {
			pair, err := tls.LoadX509KeyPair(cfg.Store.CertFile, cfg.Store.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("store.certFile: %w", err)
			}
			c.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	return opened(store.OpenEtcd(ctx, c))
}

// opened turns a nil *Etcd into a nil Store.
func opened(s *store.Etcd, err error) (store.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// certificates issues what this process needs; they live in memory, anew at each
// start.
func (cp *controlPlane) certificates(cfg *Config) error {
	serviceIP := netip.MustParsePrefix(cfg.Network.ServiceCIDR).Masked().Addr().Next()
	names := []string{"localhost", cfg.Node.Name, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + cfg.Network.Domain}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.ParseIP(cfg.Node.IP), net.IP(serviceIP.AsSlice()), net.IP(gateway(cfg).AsSlice())}
	for _, n := range cfg.API.Names {
		if ip := net.ParseIP(n); ip != nil {
			ips = append(ips, ip)
		} else {
			names = append(names, n)
		}
	}
	renewal := func(err error) {
		cp.log.Error("a certificate could not be renewed: the former one serves on", "error", err)
	}
	var server *pki.Source
	var err error
	if cfg.API.CertFile != "" {
		server, err = pki.Files(cfg.API.CertFile, cfg.API.KeyFile, time.Now, renewal)
	} else {
		server, err = pki.Issued(func() (*pki.Pair, error) { return cp.ca.Server("kube-apiserver", nil, names, ips) }, time.Now, renewal)
	}
	if err != nil {
		return err
	}
	if cp.admin, err = cp.ca.Client("kubernetes-admin", auth.GroupMasters); err != nil {
		return err
	}
	cp.kubelet, err = pki.Issued(func() (*pki.Pair, error) { return cp.ca.Client("kube-apiserver-kubelet-client", auth.GroupMasters) }, time.Now, renewal)
	if err != nil {
		return err
	}
	if cp.proxy, err = cp.frontProxy.Client(auth.FrontProxyName); err != nil {
		return err
	}
	clients := cp.ca.Pool()
	clients.AddCert(cp.frontProxy.Cert)
	cp.tls = &tls.Config{
		GetCertificate: server.GetCertificate, MinVersion: tls.VersionTLS12,
		ClientCAs: clients, ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"},
	}
	return nil
}

// gateway is the first address of the node's pod range: the node as pods see it.
func gateway(cfg *Config) netip.Addr {
	return netip.MustParsePrefix(cfg.Network.NodePodCIDR).Masked().Addr().Next()
}

func (cp *controlPlane) kubeletTransport() http.RoundTripper {
	return &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: cp.ca.Pool(), GetClientCertificate: cp.kubelet.GetClientCertificate, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
	}
}

// serverURL is where this machine's clients reach the API.
func (cp *controlPlane) serverURL() string {
	addr := cp.listener.Addr().(*net.TCPAddr)
	host := addr.IP.String()
	if addr.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, fmt.Sprint(addr.Port))
}

func apiVersion() version.Info {
	return version.Info{
		Major: "1", Minor: "36", EmulationMajor: "1", EmulationMinor: "36", MinCompatibilityMajor: "1", MinCompatibilityMinor: "35",
		GitVersion: "v1.36.3+knarr", GitTreeState: "clean", GoVersion: runtime.Version(), Compiler: runtime.Compiler,
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}
