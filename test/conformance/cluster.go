package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// cluster is the knarr under test.
type cluster struct {
	knarr, config, kubeconfig string
	nodes                     int
	proc                      *exec.Cmd
	exited                    chan struct{}
	log, lock                 *os.File
}

// name of the instance, so that another knarr on this machine is left alone.
const instance = "conform"

// alone sees to it that this is the machine's only run until the process ends: a second
// one would take the first one's cluster down.
func (c *cluster) alone() (err error) {
	name := filepath.Join(os.TempDir(), "knarr-"+instance+".lock")
	if c.lock, err = os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := syscall.Flock(int(c.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another conformance run is under way on this machine (%s is locked): run this one when it has ended", name)
	}
	return nil
}

func startCluster(ctx context.Context, o options, images string) (*cluster, error) {
	dir := filepath.Join(o.cache, "cluster")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c := &cluster{knarr: o.knarr, config: filepath.Join(dir, "config.yaml"), kubeconfig: filepath.Join(dir, "kubeconfig"), nodes: o.nodes, exited: make(chan struct{})}
	if err := c.alone(); err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	more := ""
	if o.nodes > 1 {
		more = fmt.Sprintf("nodes: %d\n", o.nodes)
	}
	conf := fmt.Sprintf(`name: %s
dataDir: %s/data
runDir: %[2]s/run
%sapi: {listen: ":%d", kubeconfig: %q}
node: {listen: ":%d"}
registries:
  %s: {mirrors: [%q], plainHTTP: true}
`, instance, dir, more, ports[0], c.kubeconfig, ports[1], mirrored, "http://"+images)
	if err := os.WriteFile(c.config, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	// What an interrupted run left must not be adopted: its images may be gone.
	c.down()
	if c.log, err = os.Create(filepath.Join(o.cache, "knarr.log")); err != nil {
		return nil, err
	}
	c.proc = exec.Command(c.knarr, "up", "--config", c.config)
	c.proc.Stdout, c.proc.Stderr = c.log, c.log
	c.proc.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is ours to pass on
	step("starting %s", c.knarr)
	if err := c.proc.Start(); err != nil {
		return nil, err
	}
	go func() { _ = c.proc.Wait(); close(c.exited) }()
	if err := c.ready(ctx); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// ready waits until every node is.
func (c *cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		out, err := exec.CommandContext(ctx, c.knarr, "kubectl", "--kubeconfig", c.kubeconfig, "wait", "--for=condition=Ready", "node", "--all", "--timeout=30s").CombinedOutput()
		count, _ := exec.CommandContext(ctx, c.knarr, "kubectl", "--kubeconfig", c.kubeconfig, "get", "nodes", "-o", "name").Output()
		if err == nil && lines(count) >= c.nodes {
			step("%d nodes are ready", lines(count))
			return nil
		}
		select {
		case <-tick.C:
		case <-c.exited:
			return fmt.Errorf("knarr ended: see %s", c.log.Name())
		case <-ctx.Done():
			return fmt.Errorf("nodes not ready after a minute: %s: see %s", out, c.log.Name())
		}
	}
}

func lines(b []byte) int {
	n := 0
	for _, c := range b {
		if c == '\n' {
			n++
		}
	}
	return n
}

// stop ends knarr and removes all of it from the machine.
func (c *cluster) stop() {
	step("taking the cluster down")
	_ = c.proc.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.exited:
	case <-time.After(30 * time.Second):
		_ = c.proc.Process.Kill()
		<-c.exited
	}
	c.down()
	c.log.Close()
}

func (c *cluster) down() {
	if out, err := exec.Command(c.knarr, "down", "--config", c.config).CombinedOutput(); err != nil {
		fmt.Printf("knarr down: %v\n%s", err, out)
	}
}

// freePorts avoids the ports from which the kernel takes those of outgoing connections.
func freePorts(n int) ([]int, error) {
	var out []int
	for tries := 0; len(out) < n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", 20000+rand.IntN(10000)))
		if err != nil && tries > 100 {
			return nil, err
		}
		if err == nil {
			defer l.Close()
			out = append(out, l.Addr().(*net.TCPAddr).Port)
		}
	}
	return out, nil
}
