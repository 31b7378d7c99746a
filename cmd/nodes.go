package cmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/kit/netns"
	"knarr.dev/knarr/kit/pki"
)

// One machine plays several nodes:
//
//	knarr up ──────────────────────────── API, controllers, first node
//	  ├─ pipe, namespace of the machine ─> knarr agent (NAME-2) in run/nodes/NAME-2.netns
//	  └─ ...
//
// Each further node is a process of its own in a network namespace of its own,
// with a link to the machine and a pod range after the first node's. It ends when
// its parent does, however that dies; its containers go on.

// maxNodes bounds the nodes of one machine; beyond it memory is what counts.
const maxNodes = 50

// Pauses before a node's process is started again, and how long it must run for
// the next pause to be short again.
const (
	firstRespawn = 200 * time.Millisecond
	maxRespawn   = 10 * time.Second
	settled      = time.Minute
)

// nodeRanges are the pod ranges of all nodes, the first node's first.
func (c *Config) nodeRanges() ([]netip.Prefix, error) {
	all, err := netip.ParsePrefix(c.Network.PodCIDR)
	if err != nil {
		return nil, err
	}
	p, err := netip.ParsePrefix(c.Network.NodePodCIDR)
	if err != nil {
		return nil, err
	}
	out := []netip.Prefix{p.Masked()}
	for len(out) < c.Nodes {
		next := after(out[len(out)-1])
		if !next.IsValid() || !all.Contains(next.Addr()) {
			return nil, fmt.Errorf("must have room for %d nodes with pod ranges of %d bits", c.Nodes, p.Bits())
		}
		out = append(out, next)
	}
	return out, nil
}

// after is the range of the same size that follows an IPv4 range.
func after(p netip.Prefix) netip.Prefix {
	b := p.Addr().As4()
	n := uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	n += 1 << (32 - p.Bits())
	if n > 0xffffffff {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), p.Bits())
}

// nodeName is that of the i-th node, from 1.
func (c *Config) nodeName(i int) string {
	if i == 1 {
		return c.Node.Name
	}
	return fmt.Sprintf("%s-%d", c.Node.Name, i)
}

// nodeNames says who is ready.
func (c *Config) nodeNames() string {
	if c.Nodes == 1 {
		return "node " + c.Node.Name + " is"
	}
	var names []string
	for i := range c.Nodes {
		names = append(names, c.nodeName(i+1))
	}
	return "nodes " + strings.Join(names, ", ") + " are"
}

func (c *Config) nodesDir() string { return filepath.Join(c.RunDir, "nodes") }

// furtherNode is a node of this machine beside the first.
type furtherNode struct {
	cfg   *Config // its own
	dir   string  // its parent's, for the pins of namespaces
	link  string  // the machine's end of the link to it
	log   *slog.Logger
	netns *os.File
	host  *os.File // the machine's namespace
}

// further is the i-th node, from 2. Its address is the first of its pod range.
func (c *Config) further(i int, pods netip.Prefix) *furtherNode {
	n := *c
	n.Nodes, n.API.Kubeconfig, n.Node.Labels = 1, "", nil
	n.Node.Name, n.Node.StaticPodPath = c.nodeName(i), "" // the first node runs those
	n.Node.KubeletDir, n.Node.PodLogsDir = "", ""         // below its own data
	n.Node.UserNamespaces.Share, n.Node.UserNamespaces.Shares = i-1, c.Nodes
	n.Node.IP = pods.Addr().Next().String()
	n.Network.NodePodCIDR = pods.String()
	n.Group = fmt.Sprintf("%s-%d", c.Name, i) // no instance's name has a dash
	n.DataDir, n.RunDir = filepath.Join(c.DataDir, "nodes", n.Node.Name), filepath.Join(c.nodesDir(), n.Node.Name)
	n.Join = JoinConfig{Kubeconfig: filepath.Join(n.DataDir, "kubeconfig")}
	if _, port, err := net.SplitHostPort(c.Node.Listen); err == nil {
		n.Node.Listen = ":" + port
	}
	return &furtherNode{cfg: &n, dir: c.nodesDir(), link: fmt.Sprintf("%s-%d", c.Name, i)}
}

func (n *furtherNode) pin() string { return filepath.Join(n.dir, n.cfg.Node.Name+".netns") }

// openFurther prepares the nodes beside the first: namespace, link, routes,
// certificate, configuration. Those of an earlier start that are not wanted any
// more are removed.
func openFurther(ctx context.Context, cfg *Config, cp *controlPlane, gateway netip.Addr, log *slog.Logger) ([]*furtherNode, error) {
	ranges, err := cfg.nodeRanges()
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	var out []*furtherNode
	for i, r := range ranges[1:] {
		n := cfg.further(i+2, r)
		n.log = log.With("node", n.cfg.Node.Name)
		wanted[n.cfg.Node.Name] = true
		out = append(out, n)
	}
	for _, name := range cfg.startedNodes() {
		if !wanted[name] {
			log.Info("removing a node that is not wanted any more", "node", name)
			if err := cfg.downNode(ctx, name, false); err != nil {
				return nil, err
			}
		}
	}
	var g errgroup.Group
	for _, n := range out {
		g.Go(func() error { return n.prepare(ctx, cp, gateway) })
	}
	return out, g.Wait()
}

func (n *furtherNode) prepare(ctx context.Context, cp *controlPlane, gateway netip.Addr) (err error) {
	// One of a parent that was killed is about to end by itself.
	if err := stopProcess(ctx, n.cfg); err != nil {
		return err
	}
	if err := n.cfg.makeDirs(); err != nil {
		return err
	}
	if err := netns.Create(n.pin()); err != nil {
		return err
	}
	if n.netns, err = os.Open(n.pin()); err != nil {
		return fmt.Errorf("node %s: %w", n.cfg.Node.Name, err)
	}
	if n.host, err = os.Open("/proc/self/ns/net"); err != nil {
		return fmt.Errorf("node %s: %w", n.cfg.Node.Name, err)
	}
	if err := n.connect(gateway); err != nil {
		return fmt.Errorf("link to node %s: %w", n.cfg.Node.Name, err)
	}
	pair, err := nodeCertificate(cp.ca, n.cfg)
	if err != nil {
		return err
	}
	if err := writeKubeconfig(n.cfg.Join.Kubeconfig, "", n.cfg.Name, cp.serverURL(), cp.ca, pair); err != nil {
		return err
	}
	b, err := yaml.Marshal(n.cfg)
	if err != nil {
		return err
	}
	if err := replaceFile(n.cfg.startedFile(), b); err != nil {
		return fmt.Errorf("configuration of node %s: %w", n.cfg.Node.Name, err)
	}
	return nil
}

// nodeCertificate is what an agent shows as a client of the API and as a server.
func nodeCertificate(ca *pki.Authority, cfg *Config, more ...net.IP) (*pki.Pair, error) {
	return ca.Server(auth.UserNode+cfg.Node.Name, []string{auth.GroupNodes}, []string{cfg.Node.Name}, append(more, net.ParseIP(cfg.Node.IP)))
}

// run keeps the node's process running until ctx ends. The process may use the API
// from the moment when usable is closed.
func (n *furtherNode) run(ctx context.Context, usable <-chan struct{}) error {
	defer n.netns.Close()
	defer n.host.Close()
	for pause := firstRespawn; ; pause = min(2*pause, maxRespawn) {
		start := time.Now()
		err := n.once(ctx, usable)
		if ctx.Err() != nil || err == nil { // it ended in order, as it was asked to
			return nil
		}
		if time.Since(start) > settled {
			pause = firstRespawn
		}
		n.log.Warn("the node's process ended; it is started again, its containers run on", "error", err, "pause", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// once runs the process until it ends, or until ctx does, which ends it.
func (n *furtherNode) once(ctx context.Context, usable <-chan struct{}) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	child := exec.Command(self, "agent", "--config", n.cfg.startedFile())
	child.Stdout, child.Stderr = os.Stderr, os.Stderr
	child.Env = append(childEnv(), parentEnv+"=1")
	child.ExtraFiles = []*os.File{r, n.host}
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for the parent
	err = netns.Do(n.netns, child.Start)
	r.Close()
	if err != nil {
		return fmt.Errorf("start the process of node %s: %w", n.cfg.Node.Name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	select {
	case <-usable:
		if _, err := w.Write([]byte{1}); err != nil {
			n.log.Debug("the node's process ended before it began", "error", err)
		}
	case <-ctx.Done():
	case err := <-ended:
		return err
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	w.Close()
	t := time.NewTimer(stopTimeout)
	defer t.Stop()
	select {
	case err := <-ended:
		return err
	case <-t.C:
		return errors.Join(child.Process.Kill(), <-ended)
	}
}

// childEnv is the environment without what is meant for this process alone.
func childEnv() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, readyEnv+"=") {
			out = append(out, e)
		}
	}
	return out
}

// startedNodes are the further nodes that have been started here.
func (c *Config) startedNodes() []string {
	files, err := filepath.Glob(filepath.Join(c.nodesDir(), "*.netns"))
	if err != nil {
		return nil
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".netns")
	}
	return files
}

// startedNode is where a further node is.
func (c *Config) startedNode(name string) *Config {
	return &Config{DataDir: filepath.Join(c.DataDir, "nodes", name), RunDir: filepath.Join(c.nodesDir(), name), Node: NodeConfig{Name: name}}
}

// downNode removes a further node: in its own namespace, by the command that
// removes an instance, then the namespace and with it the link.
func (c *Config) downNode(ctx context.Context, name string, keepData bool) error {
	n := &furtherNode{cfg: c.startedNode(name), dir: c.nodesDir()}
	if _, err := os.Stat(n.cfg.startedFile()); err == nil {
		if err := n.down(ctx, c.Name, keepData); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
	}
	return netns.Remove(n.pin())
}

func (n *furtherNode) down(ctx context.Context, instance string, keepData bool) error {
	if err := netns.Create(n.pin()); err != nil { // a reboot has taken it
		return err
	}
	ns, err := os.Open(n.pin())
	if err != nil {
		return err
	}
	defer ns.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"down", "--name", instance, "--data-dir", n.cfg.DataDir, "--run-dir", n.cfg.RunDir, "--kubeconfig", ""}
	if keepData {
		args = append(args, "--keep-data")
	}
	cmd := exec.CommandContext(ctx, self, args...)
	var problems strings.Builder
	cmd.Stderr = &problems
	if err := netns.Do(ns, cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(problems.String()))
	}
	return nil
}
