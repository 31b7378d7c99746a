package cmd

import (
	"cmp"
	"context"
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
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/bootstrap"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/container"
	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/datapath"
	"knarr.dev/knarr/dns"
	"knarr.dev/knarr/kit/lean"
	"knarr.dev/knarr/kit/pki"
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
	node    *node
	dns     *dns.Server
	further []*furtherNode
	stopDNS func()
}

// Names of the places in an instance's directories.
func (c *Config) criSocket() string     { return filepath.Join(c.RunDir, "cri.sock") }
func (c *Config) containerRoot() string { return filepath.Join(c.DataDir, "containers") }
func (c *Config) agentRoot() string     { return filepath.Join(c.DataDir, "agent") }
func (c *Config) pidFile() string       { return filepath.Join(c.RunDir, "knarr.pid") }
func (c *Config) startedFile() string   { return filepath.Join(c.RunDir, "config.yaml") }

// group is the control group of the instance's containers.
func (c *Config) group() string { return cmp.Or(c.Group, c.Name) }

func (c *Config) datapathConfig(log *slog.Logger) datapath.Config {
	return datapath.Config{
		Name: c.Name, Cgroup: c.Group, PodCIDR: netip.MustParsePrefix(c.Network.NodePodCIDR), ClusterCIDR: netip.MustParsePrefix(c.Network.PodCIDR),
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
		Root: c.containerRoot(), Run: filepath.Join(c.RunDir, "containers"), CgroupParent: c.group(), PodGroups: c.podGroup(),
		Network: nw, StreamAddr: "127.0.0.1:0", Registries: regs, Handlers: c.Runtimes, Log: log,
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
	if err := cfg.makeDirs(); err != nil {
		return nil, err
	}
	if c.control, err = openControlPlane(ctx, cfg, log); err != nil {
		return nil, err
	}
	if c.node, err = openNode(ctx, cfg, nil, log); err != nil {
		return nil, err
	}
	if c.further, err = openFurther(ctx, cfg, c.control, c.node.data.Gateway(), log); err != nil {
		return nil, err
	}
	if err := c.openDNS(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *cluster) openDNS() (err error) {
	var src *dnsSource
	src, c.stopDNS = newDNSSource(c.control.local.As(auth.Component("system:knarr:dns", auth.GroupMasters)))
	c.dns, err = dns.New(dns.Config{Domain: c.cfg.Network.Domain, Addrs: []string{netip.AddrPortFrom(c.node.data.Gateway(), 53).String()}, Source: src, Log: c.log})
	if err != nil {
		return fmt.Errorf("cluster DNS: %w", err)
	}
	return nil
}

// close lets go of everything; containers, their network and logs go on.
func (c *cluster) close() {
	c.stopDNS()
	if c.node != nil {
		c.node.close()
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
	g.Go(func() error { return cp.definitions.Run(ctx) })
	g.Go(func() error { return cp.server.Serve(ctx, cp.listener, cp.tls) })
	if len(c.cfg.Store.Endpoints) > 0 {
		g.Go(func() error { return store.CompactEvery(ctx, cp.store, compactEvery, c.log) })
	}
	api := cp.listener.Addr().(*net.TCPAddr)
	usable := make(chan struct{}) // the further nodes start meanwhile
	for _, n := range c.further {
		g.Go(func() error { return n.run(ctx, usable) })
	}
	cp.server.Await("bootstrap")
	endpoint := netip.AddrPortFrom(c.apiAddress(), uint16(api.Port))
	info, err := clusterInfo("https://"+endpoint.String(), cp.ca)
	if err != nil {
		return c.ended(ctx, g, err)
	}
	err = bootstrap.Run(ctx, cp.registry, bootstrap.Cluster{
		ServiceIP: netip.MustParsePrefix(c.cfg.Network.ServiceCIDR).Masked().Addr().Next(),
		Services:  netip.MustParsePrefix(c.cfg.Network.ServiceCIDR).Masked(),
		Endpoint:  endpoint, ClusterInfo: info,
		DNSIP: c.cfg.clusterDNS(), DNS: netip.AddrPortFrom(c.node.data.Gateway(), 53),
		ClientCA: cp.ca.PEM, FrontProxyCA: cp.frontProxy.PEM,
		Controllers: controllerRules(c.controllers()),
	})
	cp.server.Ready("bootstrap", err)
	if err != nil {
		return c.ended(ctx, g, err)
	}
	cp.follow(ctx, g)
	if err := writeKubeconfig(adminKubeconfig(c.cfg.DataDir), c.cfg.API.Kubeconfig, c.cfg.Name, cp.serverURL(), cp.ca, cp.admin); err != nil {
		return c.ended(ctx, g, err)
	}
	close(usable)
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
	return c.node.data.Gateway()
}

// runNode runs the first node.
func (c *cluster) runNode(ctx context.Context, g *errgroup.Group) error {
	user := auth.UserNode + c.cfg.Node.Name
	issue := func() (*pki.Pair, error) { return nodeCertificate(c.control.ca, c.cfg, net.IPv4(127, 0, 0, 1)) }
	source, err := pki.Issued(issue, time.Now, func(err error) {
		c.log.Error("the certificate of the node's server could not be renewed: the former one serves on", "error", err)
	})
	if err != nil {
		return err
	}
	return c.node.run(ctx, g, access{
		client: c.control.local.As(auth.Component(user, auth.GroupNodes)), serving: shows(source), clients: c.control.ca.Pool(), authorize: c.authorizeAgent,
	})
}

// authorizeAgent lets those use the kubelet API who may use the node's
// subresources.
func (c *cluster) authorizeAgent(r *http.Request) error {
	user, err := kubeletUser(r, func(ctx context.Context, token string) (*authenticationv1.UserInfo, error) {
		user, _, err := c.control.authn.Token(ctx, token, nil)
		return user, err
	})
	if err != nil {
		return err
	}
	var a *auth.Action
	verb, subresources := kubeletAccess(r)
	for _, sub := range subresources {
		a = &auth.Action{User: user, Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: c.cfg.Node.Name}
		if c.control.local.Authz.Allowed(a) {
			return nil
		}
	}
	return errors.New(a.Forbidden())
}

// whenReady calls ready when the cluster can be used: all nodes are Ready, and the
// namespace "default" has what every pod needs.
func (c *cluster) whenReady(ctx context.Context, ready func()) error {
	cl := c.control.local.As(auth.Component("system:knarr:up", auth.GroupMasters))
	isReady := func(o client.Object) bool { return nodeReady(o.(*corev1.Node)) }
	for _, n := range c.further {
		if !await(ctx, cl.Cache(client.Nodes, "metadata.name="+n.cfg.Node.Name), isReady) {
			return nil
		}
	}
	for _, wanted := range []struct {
		resource client.Resource
		name     string
		done     func(client.Object) bool
	}{
		{client.Nodes, c.cfg.Node.Name, isReady},
		{client.ServiceAccounts, "default", func(o client.Object) bool { return o.GetNamespace() == "default" }},
		{client.ConfigMaps, "kube-root-ca.crt", func(o client.Object) bool { return o.GetNamespace() == "default" }},
	} {
		if !await(ctx, cl.Cache(wanted.resource, "metadata.name="+wanted.name), wanted.done) {
			return nil
		}
	}
	ready()
	c.control.registry.Prepare()
	spare(c.log)
	lean.Keep(ctx, c.log)
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
		err = replaceFile(c.startedFile(), b)
	}
	if err == nil {
		err = replaceFile(c.pidFile(), []byte(strconv.Itoa(os.Getpid())+"\n"))
	}
	if err != nil {
		return fmt.Errorf("note the start: %w", err)
	}
	return nil
}

// replaceFile writes a file that others may be reading.
func replaceFile(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
