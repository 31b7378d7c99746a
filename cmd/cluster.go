package cmd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/agent"
	"knarr.dev/knarr/agent/network"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/bootstrap"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/container"
	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/cri"
	"knarr.dev/knarr/datapath"
	"knarr.dev/knarr/dns"
	"knarr.dev/knarr/store"
)

// cluster is one instance: control plane and node in one process.
//
//	store ─> registry ─> HTTP ─────────────> kubectl and all the world
//	             └─ local clients ─> controllers, scheduler, agent, DNS
//	agent ─> CRI socket ─> runtime ─> datapath (pod links)
//	agent/network ───────────────────> datapath (services)
type cluster struct {
	cfg *Config
	log *slog.Logger

	control *controlPlane
	data    *datapath.Datapath
	runtime *container.Server
	agent   net.Listener
	criSock net.Listener
	dns     *dns.Server
	stopDNS func()
}

// Names of the places in an instance's directories.
func (c *Config) criSocket() string     { return filepath.Join(c.RunDir, "cri.sock") }
func (c *Config) containerRoot() string { return filepath.Join(c.DataDir, "containers") }
func (c *Config) logRoot() string       { return filepath.Join(c.DataDir, "logs") }
func (c *Config) pidFile() string       { return filepath.Join(c.RunDir, "knarr.pid") }
func (c *Config) startedFile() string   { return filepath.Join(c.RunDir, "config.yaml") }

func (c *Config) datapathConfig(log *slog.Logger) datapath.Config {
	return datapath.Config{
		Name: c.Name, PodCIDR: netip.MustParsePrefix(c.Network.NodePodCIDR), ClusterCIDR: netip.MustParsePrefix(c.Network.PodCIDR),
		ServiceCIDR: netip.MustParsePrefix(c.Network.ServiceCIDR), Run: filepath.Join(c.RunDir, "datapath"), Log: log,
	}
}

func (c *Config) containerConfig(nw container.Network, log *slog.Logger) container.Config {
	regs := image.Registries{}
	for host, r := range c.Registries {
		regs[host] = image.Registry{Mirrors: r.Mirrors, PlainHTTP: r.PlainHTTP, SkipVerify: r.InsecureSkipVerify,
			Auth: authn.AuthConfig{Username: r.Username, Password: r.Password}}
	}
	return container.Config{
		Root: c.containerRoot(), Run: filepath.Join(c.RunDir, "containers"), CgroupParent: c.Name,
		Network: nw, StreamAddr: "127.0.0.1:0", Registries: regs, Log: log,
	}
}

// clusterDNS is the tenth address of the service range, as in Kubernetes.
func (c *Config) clusterDNS() netip.Addr {
	a := netip.MustParsePrefix(c.Network.ServiceCIDR).Masked().Addr()
	for range 10 {
		a = a.Next()
	}
	return a
}

// openCluster opens all parts at once: ports are bound and state is loaded, but
// nothing runs. On an error everything is closed again.
func openCluster(ctx context.Context, cfg *Config, log *slog.Logger) (c *cluster, err error) {
	c = &cluster{cfg: cfg, log: log, stopDNS: func() {}}
	opened := c // "return nil, err" clears c
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	for _, dir := range []string{cfg.DataDir, cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create %s: %w", dir, err)
		}
	}
	if c.control, err = openControlPlane(ctx, cfg, log); err != nil {
		return nil, err
	}
	if c.agent, err = listen("node.listen", cfg.Node.Listen); err != nil {
		return nil, err
	}
	// From here on something is made that "down" must find.
	if err = cfg.noteStart(); err != nil {
		return nil, err
	}
	var g errgroup.Group
	g.Go(func() (err error) {
		if c.data, err = datapath.Open(ctx, cfg.datapathConfig(log)); err != nil {
			return fmt.Errorf("data path: %w", err)
		}
		if c.runtime, err = container.New(ctx, cfg.containerConfig(c.data, log)); err != nil {
			return fmt.Errorf("container runtime: %w", err)
		}
		if c.criSock, err = listenUnix(cfg.criSocket()); err != nil {
			return err
		}
		return c.detachStale(ctx)
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := c.openDNS(); err != nil {
		return nil, err
	}
	return c, nil
}

// listenUnix binds a socket path; one that a dead process left is replaced.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s is in use by another knarr: stop it or choose another --run-dir", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("CRI socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("CRI socket: %w", err)
	}
	// A dying process must leave the path to its successor, and a closing one
	// must not remove its successor's.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, os.Chmod(path, 0o600)
}

// detachStale gives back the links of sandboxes that ended while nobody looked.
func (c *cluster) detachStale(ctx context.Context) error {
	list, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("container runtime: %w", err)
	}
	live := map[string]bool{}
	for _, s := range list.Items {
		live[s.Id] = true
	}
	for id := range c.data.Attached() {
		if !live[id] {
			if err := c.data.Detach(ctx, id); err != nil {
				return fmt.Errorf("data path: detach sandbox %s: %w", id, err)
			}
		}
	}
	return nil
}

func (c *cluster) openDNS() (err error) {
	var src *dnsSource
	src, c.stopDNS = newDNSSource(c.control.local.As(auth.Component("system:knarr:dns", auth.GroupMasters)))
	c.dns, err = dns.New(dns.Config{Domain: c.cfg.Network.Domain, Addrs: []string{netip.AddrPortFrom(c.data.Gateway(), 53).String()}, Source: src, Log: c.log})
	if err != nil {
		return fmt.Errorf("cluster DNS: %w", err)
	}
	return nil
}

// close lets go of everything; containers, their network and logs go on.
func (c *cluster) close() {
	c.stopDNS()
	if c.runtime != nil {
		if err := c.runtime.Close(); err != nil {
			c.log.Warn("close the container runtime", "error", err)
		}
	}
	for _, l := range []net.Listener{c.criSock, c.agent} {
		if l != nil {
			l.Close()
		}
	}
	if c.data != nil {
		if err := c.data.Close(); err != nil {
			c.log.Warn("close the data path", "error", err)
		}
	}
	if c.control != nil {
		c.control.close()
	}
}

// compactEvery is how much history an external etcd keeps at least, as in
// Kubernetes.
const compactEvery = 5 * time.Minute

func kindOf(o client.Object) schema.GroupVersionKind {
	if gvk := o.GetObjectKind().GroupVersionKind(); !gvk.Empty() {
		return gvk
	}
	if gvks, _, err := scheme.Scheme.ObjectKinds(o); err == nil {
		return gvks[0]
	}
	return schema.GroupVersionKind{}
}

// run runs every part until ctx ends or one of them fails. ready is called once,
// when the cluster can be used.
func (c *cluster) run(ctx context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	cp := c.control
	g.Go(func() error { return cp.registry.Run(ctx) })
	g.Go(func() error { return cp.server.Serve(ctx, cp.listener, cp.tls) })
	if len(c.cfg.Store.Endpoints) > 0 {
		g.Go(func() error { return store.CompactEvery(ctx, cp.store, compactEvery, c.log) })
	}
	api := cp.listener.Addr().(*net.TCPAddr)
	cp.server.Await("bootstrap")
	err := bootstrap.Run(ctx, cp.registry, bootstrap.Cluster{
		ServiceIP: netip.MustParsePrefix(c.cfg.Network.ServiceCIDR).Masked().Addr().Next(),
		Endpoint:  netip.AddrPortFrom(c.apiAddress(), uint16(api.Port)),
		DNSIP:     c.cfg.clusterDNS(), DNS: netip.AddrPortFrom(c.data.Gateway(), 53),
		Controllers: controllerRules(c.controllers()),
	})
	cp.server.Ready("bootstrap", err)
	if err != nil {
		return c.ended(ctx, g, err)
	}
	if err := writeKubeconfig(adminKubeconfig(c.cfg.DataDir), c.cfg.API.Kubeconfig, c.cfg.Name, cp.serverURL(), cp.ca, cp.admin); err != nil {
		return c.ended(ctx, g, err)
	}
	if err := c.runNode(ctx, g); err != nil {
		return c.ended(ctx, g, err)
	}
	c.runControllers(ctx, g)
	g.Go(func() error { return c.dns.Run(ctx) })
	g.Go(func() error { return c.whenReady(ctx, ready) })
	return g.Wait()
}

// ended stops what runs already after a failure to start the rest.
func (c *cluster) ended(ctx context.Context, g *errgroup.Group, err error) error {
	g.Go(func() error { return err })
	if werr := g.Wait(); werr != nil {
		return werr
	}
	return ctx.Err()
}

// apiAddress is where pods reach the API server: the node's own address, or the
// pods' gateway where the node has none but loopback.
func (c *cluster) apiAddress() netip.Addr {
	if ip := netip.MustParseAddr(c.cfg.Node.IP); !ip.IsLoopback() {
		return ip
	}
	return c.data.Gateway()
}

// recorder returns a component's event recorder and runs it.
func (c *cluster) recorder(ctx context.Context, g *errgroup.Group, cl client.Interface, component, host string) client.Recorder {
	ev := client.NewEvents(cl, component, host, kindOf, time.Now, c.log)
	g.Go(func() error { return ev.Run(ctx) })
	return ev
}

// runNode starts the runtime's service, the agent and the data path's feeder.
func (c *cluster) runNode(ctx context.Context, g *errgroup.Group) error {
	g.Go(func() error { return c.runtime.Serve(ctx, c.criSock) })
	conn, err := cri.Dial(c.cfg.criSocket())
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	node := c.control.local.As(auth.Component(auth.UserNode+c.cfg.Node.Name, auth.GroupNodes))
	nw := network.New(network.Config{NodeName: c.cfg.Node.Name, Client: node, Dataplane: c.data, Clock: clock.RealClock{}, Log: c.log})
	pair, err := c.control.ca.Server(auth.UserNode+c.cfg.Node.Name, []string{auth.GroupNodes}, []string{c.cfg.Node.Name}, []net.IP{net.ParseIP(c.cfg.Node.IP), net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		NodeName: c.cfg.Node.Name, Client: node, CRI: conn, Recorder: c.recorder(ctx, g, node, "kubelet", c.cfg.Node.Name),
		Root: filepath.Join(c.cfg.DataDir, "agent"), LogRoot: c.cfg.logRoot(),
		NodeIPs: []netip.Addr{netip.MustParseAddr(c.cfg.Node.IP)}, ClusterDNS: []netip.Addr{c.cfg.clusterDNS()}, ClusterDomain: c.cfg.Network.Domain,
		CgroupRoot: "/" + c.cfg.Name + "/kubepods", MaxPods: c.cfg.Node.MaxPods, NodeLabels: c.cfg.Node.Labels, Version: apiVersion().GitVersion, Drainer: nw,
		Listen:    c.agent,
		TLS:       &tls.Config{Certificates: []tls.Certificate{pair.TLS}, ClientCAs: c.control.ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12},
		Authorize: c.authorizeAgent, Clock: clock.RealClock{}, Log: c.log,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return nw.Run(ctx) })
	g.Go(func() error { return a.Run(ctx) })
	return nil
}

// authorizeAgent lets those use the kubelet API who may use the node's
// subresources.
func (c *cluster) authorizeAgent(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return errors.New("a client certificate is required")
	}
	user, err := (&auth.Authenticator{}).Authenticate(r)
	if err != nil {
		return err
	}
	a := &auth.Action{User: user, Verb: "get", Version: "v1", Resource: "nodes", Subresource: "proxy", Name: c.cfg.Node.Name}
	if !c.control.local.Authz.Allowed(a) {
		return errors.New(a.Forbidden())
	}
	return nil
}

// whenReady calls ready when the cluster can be used: the node is Ready, and the
// namespace "default" has what every pod needs.
func (c *cluster) whenReady(ctx context.Context, ready func()) error {
	cl := c.control.local.As(auth.Component("system:knarr:up", auth.GroupMasters))
	for _, wanted := range []struct {
		resource client.Resource
		name     string
		done     func(client.Object) bool
	}{
		{client.Nodes, c.cfg.Node.Name, func(o client.Object) bool { return nodeReady(o.(*corev1.Node)) }},
		{client.ServiceAccounts, "default", func(o client.Object) bool { return o.GetNamespace() == "default" }},
		{client.ConfigMaps, "kube-root-ca.crt", func(o client.Object) bool { return o.GetNamespace() == "default" }},
	} {
		if !await(ctx, cl.Cache(wanted.resource, "metadata.name="+wanted.name), wanted.done) {
			return nil
		}
	}
	ready()
	return nil
}

// await blocks until an object of the cache satisfies done; false if ctx ended.
func await(ctx context.Context, cache client.Cache, done func(client.Object) bool) bool {
	seen := make(chan struct{})
	var once sync.Once
	cancel := cache.Subscribe(func(e client.Event) {
		if e.Type != client.Deleted && done(e.Object) {
			once.Do(func() { close(seen) })
		}
	})
	defer cancel()
	select {
	case <-seen:
		return true
	case <-ctx.Done():
		return false
	}
}

func nodeReady(n *corev1.Node) bool {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// noteStart writes down who runs the instance, and with which configuration, for
// status and down.
func (c *Config) noteStart() error {
	b, err := yaml.Marshal(c)
	if err == nil {
		err = os.WriteFile(c.startedFile(), b, 0o600)
	}
	if err == nil {
		err = os.WriteFile(c.pidFile(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("note the start: %w", err)
	}
	return nil
}
