package cmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/cri"
	"knarr.dev/knarr/datapath"
	"knarr.dev/knarr/kit/cni"
)

// A node may run its pods by another runtime than knarr's own: by any that speaks
// CRI and CNI. Its sandboxes are attached to knarr's network by the CNI plugin, which
// is this program under another name:
//
//	agent ─CRI─> runtime ─exec─> knarr-cni ─socket─> datapath

// Where runtimes look for CNI networks unless they are told otherwise.
const (
	defaultCNIConf = "/etc/cni/net.d"
	defaultCNIBin  = "/opt/cni/bin"
)

// kubeletFlags adds the flags that a node has from kubelets, under their names: those
// of a foreign runtime, of static pods, of eviction. What it returns overrides the
// configuration by those that were given.
func kubeletFlags(f *pflag.FlagSet) func(*Config) error {
	d := defaultConfig().Node
	endpoint := f.String("container-runtime-endpoint", "", "socket of the container runtime to use instead of the built-in one, such as unix:///run/containerd/containerd.sock")
	images := f.String("image-service-endpoint", "", "socket of the image service, if it is not the runtime's")
	conf := f.String("cni-conf-dir", d.CNIConfDir, "where that runtime looks for CNI networks")
	bin := f.String("cni-bin-dir", d.CNIBinDir, "where that runtime looks for CNI plugins")
	providers := f.String("image-credential-provider-config", "", "file, or folder of files, that says which programs know the credentials of which images")
	providerBin := f.String("image-credential-provider-bin-dir", "", "where these programs are")
	static := f.String("pod-manifest-path", "", "folder, or file, of pods that this node runs whatever the API says")
	evict, exclusive, shutdown, admission, healthz := evictionFlags(f), exclusiveFlags(f), shutdownFlags(f), admissionFlags(f), healthzFlags(f)
	return func(cfg *Config) error {
		for name, apply := range map[string]func(){
			"container-runtime-endpoint":        func() { cfg.Node.RuntimeEndpoint = *endpoint },
			"image-service-endpoint":            func() { cfg.Node.ImageEndpoint = *images },
			"cni-conf-dir":                      func() { cfg.Node.CNIConfDir = *conf },
			"cni-bin-dir":                       func() { cfg.Node.CNIBinDir = *bin },
			"image-credential-provider-config":  func() { cfg.Node.CredentialConfig = *providers },
			"image-credential-provider-bin-dir": func() { cfg.Node.CredentialBin = *providerBin },
			"pod-manifest-path":                 func() { cfg.Node.StaticPodPath = *static },
		} {
			if f.Changed(name) {
				apply()
			}
		}
		exclusive(cfg)
		shutdown(cfg)
		healthz(cfg)
		return errors.Join(admission(cfg), evict(cfg))
	}
}

func (c *Config) foreign() bool     { return c.Node.RuntimeEndpoint != "" }
func (c *Config) cniSocket() string { return filepath.Join(c.RunDir, "cni.sock") }
func (c *Config) cniPlace() cni.Place {
	return cni.Place{ConfDir: c.Node.CNIConfDir, BinDir: c.Node.CNIBinDir, Name: c.Name}
}

// openForeign prepares a node for another runtime.
func (n *node) openForeign() (err error) {
	n.stale = slices.Collect(maps.Keys(n.data.Attached()))
	if n.cniSock, err = listenUnix(n.cfg.cniSocket()); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("CNI plugin: %w", err)
	}
	return n.cfg.cniPlace().Install(exe, n.cfg.cniSocket())
}

// staleAfter is when the links of sandboxes that are gone are given back: by then a
// runtime has listed those that it was making when this process began.
const staleAfter = time.Minute

// runForeign serves the CNI plugin and gives back what sandboxes left that ended
// while nobody looked.
func (n *node) runForeign(ctx context.Context, g *errgroup.Group, conn *cri.Client) {
	g.Go(func() error { return cni.Serve(ctx, n.cniSock, n.data, n.data.Gateway(), n.log) })
	g.Go(func() error {
		t := time.NewTimer(staleAfter)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		list, err := conn.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			n.log.Warn("addresses of sandboxes that are gone stay taken until the next start", "error", err)
			return nil
		}
		live := map[string]bool{}
		for _, s := range list.Items {
			live[s.Id] = true
		}
		for _, id := range n.stale {
			if !live[id] {
				if err := n.data.Detach(ctx, id); err != nil && ctx.Err() == nil {
					n.log.Warn("the address of a sandbox that is gone stays taken", "sandbox", id, "error", err)
				}
			}
		}
		return nil
	})
}

// destroyForeign removes the sandboxes of a foreign runtime that are on this node's
// network; those on the machine's own network stay.
func destroyForeign(ctx context.Context, cfg *Config, d *datapath.Datapath, log *slog.Logger) error {
	ids := d.Attached()
	conn, err := cri.DialBoth(cfg.Node.RuntimeEndpoint, cfg.Node.ImageEndpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, staleAfter)
	defer cancel()
	// The runtime detaches through the plugin.
	l, err := listenUnix(cfg.cniSocket())
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	var server sync.WaitGroup
	server.Go(func() { _ = cni.Serve(serving, l, d, d.Gateway(), log) }) // it ends with serving
	defer server.Wait()
	defer stop()
	for id := range ids {
		_, err := conn.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		if err == nil {
			_, err = conn.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		}
		if err != nil && grpcstatus.Code(err) != codes.NotFound {
			log.Warn("a sandbox stays in the container runtime: remove it with crictl rmp -f", "sandbox", id, "error", err)
		}
	}
	if err := (&podGroups{}).Remove(ctx, cfg.group()); err != nil {
		log.Warn("control groups stay", "error", err)
	}
	return cfg.cniPlace().Remove()
}
