package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func upCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "up",
		Short: "Run a cluster on this machine",
		Long: `Run a whole cluster in this process: API server, controllers, scheduler, node
agent, container runtime, network and DNS. It stays in the foreground; ctrl-C or
a kill ends knarr alone: the containers go on, and the next "knarr up" takes them
up again. "knarr down" removes everything.`,
		Args: cobra.NoArgs,
	}
	load := instanceFlags(c)
	d := defaultConfig()
	f := c.Flags()
	detach := f.Bool("detach", false, "go to the background when the node is ready")
	api := f.String("listen", d.API.Listen, "address of the API server")
	agentAddr := f.String("node-listen", d.Node.Listen, "address of the node agent")
	pods := f.String("pod-cidr", d.Network.PodCIDR, "addresses of pods")
	services := f.String("service-cidr", d.Network.ServiceCIDR, "addresses of services")
	node := f.String("node-name", d.Node.Name, "name of this node")
	nodes := f.Int("nodes", d.Nodes, "nodes that this machine plays; those beside the first are named NODE-NAME-2 and so on")
	kubelet := kubeletFlags(f)
	etcd := f.StringSlice("etcd-servers", nil, "endpoints of an etcd to use instead of the built-in one")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		for name, apply := range map[string]func(){
			"listen":       func() { cfg.API.Listen = *api },
			"node-listen":  func() { cfg.Node.Listen = *agentAddr },
			"pod-cidr":     func() { cfg.Network.PodCIDR, cfg.Network.NodePodCIDR = *pods, firstNodeCIDR(*pods) },
			"service-cidr": func() { cfg.Network.ServiceCIDR = *services },
			"node-name":    func() { cfg.Node.Name = *node },
			"nodes":        func() { cfg.Nodes = *nodes },
			"etcd-servers": func() { cfg.Store.Endpoints = *etcd },
		} {
			if f.Changed(name) {
				apply()
			}
		}
		if err := kubelet(cfg); err != nil {
			return err
		}
		if err := cfg.validate(); err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("knarr up must run as root: it makes namespaces, mounts and control groups")
		}
		if *detach {
			return detachUp(cfg, c.OutOrStdout())
		}
		return up(c.Context(), cfg, c.OutOrStdout())
	}
	return c
}

// firstNodeCIDR is the first /24 of the pods' range, or all of a smaller one. What
// is no prefix is left for validation to name.
func firstNodeCIDR(pods string) string {
	p, err := netip.ParsePrefix(pods)
	if err != nil || p.Bits() >= 24 {
		return pods
	}
	return netip.PrefixFrom(p.Masked().Addr(), 24).String()
}

// up runs a cluster until a signal.
func up(parent context.Context, cfg *Config, out io.Writer) error {
	if parent == nil {
		parent = context.Background()
	}
	start := time.Now()
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := logger(cfg.LogLevel, os.Stderr)
	c, err := openCluster(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer c.close()
	defer os.Remove(cfg.pidFile())
	return c.run(ctx, func() {
		fmt.Fprintf(out, "%s ready after %d ms\n\n%s", cfg.nodeNames(), time.Since(start).Milliseconds(), nextSteps(cfg))
		notifyReady()
	})
}

func nextSteps(cfg *Config) string {
	kubectl := "kubectl"
	if cfg.API.Kubeconfig == "" {
		kubectl = "KUBECONFIG=" + adminKubeconfig(cfg.DataDir) + " knarr kubectl"
	} else if _, err := exec.LookPath("kubectl"); err != nil {
		kubectl = "knarr kubectl"
	}
	down := "knarr down"
	if cfg.Name != "knarr" {
		down += " --name " + cfg.Name
	}
	return fmt.Sprintf("  %s get nodes\n  %s create deployment hello --image=REGISTRY/IMAGE\n  %s        removes the cluster\n", kubectl, kubectl, down)
}

// readyFD is the file that a detached child writes to when it is ready.
const readyFD = 3

const readyEnv = "KNARR_READY_FD"

func notifyReady() {
	if os.Getenv(readyEnv) == "" {
		return
	}
	f := os.NewFile(readyFD, "ready")
	fmt.Fprintln(f, "ready")
	f.Close()
}

// detachUp runs the same command in the background and returns when its node is
// ready. The child's output goes to a file in the data directory.
func detachUp(cfg *Config, out io.Writer) error {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", cfg.DataDir, err)
	}
	logFile := filepath.Join(cfg.DataDir, "knarr.log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var args []string
	for _, a := range os.Args[1:] {
		if a != "--detach" && a != "--detach=true" {
			args = append(args, a)
		}
	}
	child := exec.Command(self, args...)
	child.Env = append(os.Environ(), readyEnv+"=1")
	child.Stdout, child.Stderr, child.ExtraFiles = log, log, []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := time.Now()
	if err := child.Start(); err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	w.Close()
	if n, _ := r.Read(make([]byte, 16)); n == 0 {
		err := child.Wait()
		return fmt.Errorf("knarr ended before its node was ready (%v): %s", err, tail(logFile, before))
	}
	fmt.Fprintf(out, "%s ready after %d ms (process %d, log %s)\n\n%s", cfg.nodeNames(), time.Since(start).Milliseconds(), child.Process.Pid, logFile, nextSteps(cfg))
	return child.Process.Release()
}

// tail returns the last line written to a file after offset.
func tail(file string, offset int64) string {
	b, err := os.ReadFile(file)
	if err != nil || int64(len(b)) <= offset {
		return "see " + file
	}
	lines := strings.Split(strings.TrimSpace(string(b[offset:])), "\n")
	return strings.TrimPrefix(lines[len(lines)-1], "knarr: ")
}
