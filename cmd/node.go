package cmd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent"
	"knarr.dev/knarr/agent/credentials"
	"knarr.dev/knarr/agent/metrics"
	"knarr.dev/knarr/agent/network"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/container"
	"knarr.dev/knarr/container/image"
	"knarr.dev/knarr/cri"
	"knarr.dev/knarr/datapath"
)

// node is the part of an instance that runs pods.
//
//	agent ─> CRI socket ─> runtime ─> datapath (pod links)
//	agent/network ───────────────────> datapath (services)
type node struct {
	cfg *Config
	log *slog.Logger

	data    *datapath.Datapath
	runtime *container.Server
	api     net.Listener // of the kubelet API
	criSock net.Listener

	// of a foreign runtime; runtime and criSock are nil then
	cniSock net.Listener
	stale   []string // sandboxes that had a link at the start
}

// access is how an agent reaches the API, and who may reach the agent.
type access struct {
	client client.Interface
	// remote: the API is in another process, so that each cached object costs.
	remote    bool
	requests  *metrics.Requests        // counts those to the API; nil: nothing does
	cert      func() *x509.Certificate // shown to the API; nil: none
	serving   func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	clients   *x509.CertPool
	authorize func(*http.Request) error
}

// openNode binds ports, loads what the kernel and the runtime's records hold, and
// notes the start; nothing runs. On an error everything is closed again. dial
// reaches image registries; nil: from this process' network.
func openNode(ctx context.Context, cfg *Config, dial image.Dial, log *slog.Logger) (n *node, err error) {
	n = &node{cfg: cfg, log: log}
	opened := n // "return nil, err" clears n
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	if n.api, err = listen("node.listen", cfg.Node.Listen); err != nil {
		return nil, err
	}
	// From here on something is made that "down" must find.
	if err = cfg.noteStart(); err != nil {
		return nil, err
	}
	if n.data, err = datapath.Open(ctx, cfg.datapathConfig(log)); err != nil {
		return nil, fmt.Errorf("data path: %w", err)
	}
	if cfg.foreign() {
		return n, n.openForeign()
	}
	cc := cfg.containerConfig(n.data, log)
	cc.DialRegistry = dial
	if n.runtime, err = container.New(ctx, cc); err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	if n.criSock, err = listenUnix(cfg.criSocket()); err != nil {
		return nil, err
	}
	return n, n.detachStale(ctx)
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
func (n *node) detachStale(ctx context.Context) error {
	list, err := n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("container runtime: %w", err)
	}
	live := map[string]bool{}
	for _, s := range list.Items {
		live[s.Id] = true
	}
	for id := range n.data.Attached() {
		if !live[id] {
			if err := n.data.Detach(ctx, id); err != nil {
				return fmt.Errorf("data path: detach sandbox %s: %w", id, err)
			}
		}
	}
	return nil
}

// close lets go of everything; containers, their network and logs go on.
func (n *node) close() {
	if n.runtime != nil {
		if err := n.runtime.Close(); err != nil {
			n.log.Warn("close the container runtime", "error", err)
		}
	}
	for _, l := range []net.Listener{n.criSock, n.cniSock, n.api} {
		if l != nil {
			l.Close()
		}
	}
	if n.data != nil {
		if err := n.data.Close(); err != nil {
			n.log.Warn("close the data path", "error", err)
		}
	}
}

// run starts the runtime's service, the agent and the data path's feeder.
func (n *node) run(ctx context.Context, g *errgroup.Group, acc access) error {
	endpoint := n.cfg.criSocket()
	if n.cfg.foreign() {
		endpoint = n.cfg.Node.RuntimeEndpoint
	}
	conn, err := cri.DialBoth(endpoint, n.cfg.Node.ImageEndpoint)
	if err != nil {
		return err
	}
	if n.cfg.foreign() {
		n.runForeign(ctx, g, conn)
	} else {
		g.Go(func() error { return n.runtime.Serve(ctx, n.criSock) })
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	nw := network.New(network.Config{NodeName: n.cfg.Node.Name, Client: acc.client, Dataplane: n.data, Remote: acc.remote, Clock: clock.RealClock{}, Log: n.log})
	var groups agent.Groups
	if n.cfg.foreign() {
		if groups, err = newPodGroups(); err != nil {
			return err
		}
	}
	if err := n.cfg.Node.AdmissionConfig.validate(); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	reserved, err := n.cfg.Node.AdmissionConfig.reserved()
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	shared, err := newClasses(n.cfg.podGroup(), reserved)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	short, err := n.cfg.Node.EvictionConfig.config()
	if err != nil {
		return err
	}
	restart, err := n.cfg.Node.maxRestart()
	if err != nil {
		return err
	}
	users, err := n.cfg.userSlots("/etc/subuid", "/etc/subgid")
	if err != nil {
		return fmt.Errorf("node.userNamespaces: %w", err)
	}
	exclusive, err := n.cfg.Node.ExclusiveConfig.config()
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	ends, err := n.cfg.Node.ShutdownConfig.periods()
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	removal, err := n.cfg.Node.ImageGCConfig.parse()
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	var providers *credentials.Config
	if n.cfg.Node.CredentialConfig != "" {
		if providers, err = credentials.Load(n.cfg.Node.CredentialConfig, n.cfg.Node.CredentialBin); err != nil {
			return err
		}
	}
	a, err := agent.New(agent.Config{
		SwapBehavior: n.cfg.Node.MemorySwap.Behavior,
		Credentials:  providers, CredentialBin: n.cfg.Node.CredentialBin, DockerDirs: n.cfg.dockerDirs(),
		Verify:          n.cfg.Node.PulledConfig.verification(),
		ShutdownPeriods: ends, Inhibitor: inhibitor(),
		Exclusive: exclusive, ImageGC: removal,
		Users: users, KubeletDir: n.cfg.kubeletDir(),
		Eviction: short, MaxRestart: restart,
		Groups: groups, ImageRoot: n.cfg.containerRoot(), StaticPodPath: n.cfg.Node.StaticPodPath, Commit: apiVersion().GitCommit,
		NodeName: n.cfg.Node.Name, Client: acc.client, EachObject: acc.remote, CRI: conn,
		Recorder: recorder(ctx, g, acc.client, "kubelet", n.cfg.Node.Name, n.log),
		Root:     n.cfg.agentRoot(), LogRoot: n.cfg.logRoot(), LogLinks: n.cfg.logLinks(),
		NodeIPs: []netip.Addr{netip.MustParseAddr(n.cfg.Node.IP)}, PodCIDR: netip.MustParsePrefix(n.cfg.Network.NodePodCIDR).Masked(),
		ClusterDNS: []netip.Addr{n.cfg.clusterDNS()}, ClusterDomain: n.cfg.Network.Domain,
		ResolvConf: n.cfg.Node.ResolvConf, LogMaxSize: n.cfg.Node.LogMaxSize.Value(), LogMaxFiles: n.cfg.Node.LogMaxFiles, SingleProcessOOMKill: n.cfg.Node.SingleProcessOOMKill, UnsafeSysctls: n.cfg.Node.UnsafeSysctls, PodPids: n.cfg.Node.PodPids, Taints: n.cfg.Node.Taints,
		CgroupRoot: n.cfg.podGroup(), Classes: shared, Reserved: reserved, SeccompDefault: n.cfg.Node.SeccompDefault, MaxPods: n.cfg.Node.MaxPods, NodeLabels: n.cfg.Node.Labels, Version: apiVersion().GitVersion, Drainer: nw,
		Listen: n.api, Healthz: n.cfg.listenHealthz(n.log), Requests: acc.requests, ClientCert: acc.cert,
		TLS:       &tls.Config{GetCertificate: acc.serving, ClientCAs: acc.clients, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12},
		Authorize: acc.authorize, Clock: clock.RealClock{}, Log: n.log,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return nw.Run(ctx) })
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error { return n.runShutdown(ctx, a) })
	return nil
}

// recorder returns a component's event recorder and runs it.
func recorder(ctx context.Context, g *errgroup.Group, cl client.Interface, component, host string, log *slog.Logger) client.Recorder {
	ev := client.NewEvents(cl, component, host, kindOf, time.Now, log)
	g.Go(func() error { return ev.Run(ctx) })
	return ev
}
