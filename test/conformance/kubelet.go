package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// With -kubelet the pods are run by upstream's kubelet on "knarr runtime", as a second
// node of the cluster, and none by knarr's own agent:
//
//	knarr up (API server, scheduler, controllers, DNS; its node is tainted)
//	    ^
//	kubelet ──CRI──> knarr runtime

const (
	kubeletNode = "upstream"
	// kubeletIP is an address of the second node's own, on lo.
	kubeletIP = "198.18.77.1"
	// kubeletGroup holds the pods. It is below the cluster's group, because services
	// are reached from there alone.
	kubeletGroup = instance + "/kubelet"
	kubeletName  = "confkub"
)

// kubelet is the second node.
type kubelet struct {
	knarr, config string
	procs         []*process
}

type process struct {
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{}
}

func startProcess(log string, name string, args ...string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(name, args...), log: f, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = p.cmd.Wait(); close(p.exited) }()
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	p.log.Close()
}

// startKubelet adds the second node to c and keeps pods off the first.
func startKubelet(ctx context.Context, o options, t tools, c *cluster, images string) (*kubelet, error) {
	dir := filepath.Join(o.cache, "kubelet")
	for _, d := range []string{dir, filepath.Join(dir, "pods"), filepath.Join(dir, "plugins")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	k := &kubelet{knarr: o.knarr, config: filepath.Join(dir, "runtime.yaml")}
	runtime := fmt.Sprintf(`name: %s
dataDir: %s/data
runDir: /run/%[1]s
group: %[3]s
network: {nodePodCIDR: 10.244.200.0/24}
registries:
  %[4]s: {mirrors: [%[5]q], plainHTTP: true}
`, kubeletName, dir, kubeletGroup, mirrored, "http://"+images)
	if err := os.WriteFile(k.config, []byte(runtime), 0o600); err != nil {
		return nil, err
	}
	k.clean()
	if err := k.prepare(dir); err != nil {
		return nil, err
	}
	if err := k.start(ctx, t, c, dir); err != nil {
		k.stop()
		return nil, fmt.Errorf("kubelet: %w: see %s", err, dir)
	}
	return k, nil
}

// prepare makes the node's address and the control groups that a kubelet wants to find.
func (k *kubelet) prepare(dir string) error {
	if out, err := exec.Command("ip", "address", "replace", kubeletIP+"/32", "dev", "lo").CombinedOutput(); err != nil {
		return fmt.Errorf("address of the node: %w: %s", err, out)
	}
	for _, g := range kubeletGroups() {
		if err := os.MkdirAll(g, 0o755); err != nil {
			return err
		}
		// A group of CPUs begins without any.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			for _, at := range []string{filepath.Dir(g), g} {
				if b, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(g)), f)); err == nil {
					_ = os.WriteFile(filepath.Join(at, f), b, 0)
				}
			}
		}
	}
	return nil
}

// kubeletGroups are the group's folders in all hierarchies.
func kubeletGroups() []string {
	var out []string
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			out = append(out, filepath.Join(f[1], kubeletGroup))
		}
	}
	return out
}

func (k *kubelet) start(ctx context.Context, t tools, c *cluster, dir string) error {
	access, err := exec.CommandContext(ctx, k.knarr, "agent", "access", kubeletNode, "--node-ip", kubeletIP, "--config", c.config).Output()
	if err != nil {
		return fmt.Errorf("knarr agent access: %w", err)
	}
	port, err := freePorts(1)
	if err != nil {
		return err
	}
	if err := writeKubeletFiles(dir, string(access), port[0]); err != nil {
		return err
	}
	runtime, err := startProcess(filepath.Join(dir, "runtime.log"), k.knarr, "runtime", "--config", k.config)
	if err != nil {
		return err
	}
	k.procs = append(k.procs, runtime)
	if err := waitFor(ctx, "the runtime's socket", runtime, func() bool { return exists("/run/" + kubeletName + "/cri.sock") }); err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	kl, err := startProcess(at("kubelet.log"), t.path("kubelet"), "--config", at("config.yaml"), "--kubeconfig", at("kubeconfig"),
		"--root-dir", at("root"), "--cert-dir", at("pki"), "--hostname-override", kubeletNode, "--node-ip", kubeletIP, "-v=2")
	if err != nil {
		return err
	}
	k.procs = append(k.procs, kl)
	kubectl := func(args ...string) ([]byte, error) {
		return exec.CommandContext(ctx, c.knarr, append([]string{"kubectl", "--kubeconfig", c.kubeconfig}, args...)...).CombinedOutput()
	}
	if err := waitFor(ctx, "the kubelet's node", kl, func() bool {
		_, err := kubectl("wait", "--for=condition=Ready", "node/"+kubeletNode, "--timeout=2s")
		return err == nil
	}); err != nil {
		return err
	}
	names, err := kubectl("get", "nodes", "-o", "jsonpath={range .items[*]}{.metadata.name} {end}")
	if err != nil {
		return fmt.Errorf("%w: %s", err, names)
	}
	for _, n := range strings.Fields(string(names)) {
		if n != kubeletNode {
			if out, err := kubectl("taint", "node", n, "--overwrite", "node-role.kubernetes.io/control-plane:NoSchedule"); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
	}
	version, err := kubectl("get", "node", kubeletNode, "-o", "jsonpath={.status.nodeInfo.kubeletVersion} on {.status.nodeInfo.containerRuntimeVersion}")
	step("node %s is ready: kubelet %s", kubeletNode, version)
	return err
}

// waitFor polls until done, at most a minute, or p ends.
func waitFor(ctx context.Context, what string, p *process, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for tick := time.NewTicker(200 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("waiting for %s: %s ended", what, p.cmd.Path)
		case <-ctx.Done():
			return fmt.Errorf("%s is not there after a minute", what)
		}
	}
	return nil
}

// writeKubeletFiles takes the node's certificate apart: a kubelet wants files.
func writeKubeletFiles(dir, kubeconfig string, port int) error {
	kc, err := clientcmd.Load([]byte(kubeconfig))
	if err != nil {
		return err
	}
	files := map[string]string{"kubeconfig": kubeconfig}
	for _, cl := range kc.Clusters {
		files["ca.crt"] = string(cl.CertificateAuthorityData)
	}
	for _, u := range kc.AuthInfos {
		files["node.crt"], files["node.key"] = string(u.ClientCertificateData), string(u.ClientKeyData)
	}
	files["config.yaml"] = fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
port: %[2]d
healthzPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[3]s/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: %[3]s/node.crt
tlsPrivateKeyFile: %[3]s/node.key
containerRuntimeEndpoint: unix:///run/%[4]s/cri.sock
cgroupDriver: cgroupfs
cgroupRoot: /%[5]s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: [none]
oomScoreAdj: 0
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
podLogsDir: %[3]s/pods
volumePluginDir: %[3]s/plugins
serializeImagePulls: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, nodefs.inodesFree: 1%%, imagefs.available: 1%%}
`, kubeletIP, port, dir, kubeletName, kubeletGroup)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the node and removes all of it.
func (k *kubelet) stop() {
	step("taking the kubelet's node away")
	for i := len(k.procs) - 1; i >= 0; i-- {
		k.procs[i].stop()
	}
	k.clean()
}

func (k *kubelet) clean() {
	if out, err := exec.Command(k.knarr, "down", "--config", k.config).CombinedOutput(); err != nil {
		fmt.Printf("knarr down: %v\n%s", err, out)
	}
	_ = exec.Command("ip", "address", "del", kubeletIP+"/32", "dev", "lo").Run() // gone already
	root := filepath.Join(filepath.Dir(k.config), "root")
	unmountBelow(root)
	_ = os.RemoveAll(root)
	for _, g := range kubeletGroups() {
		var dirs []string
		_ = filepath.WalkDir(g, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append([]string{path}, dirs...)
			}
			return nil
		})
		for _, d := range append(dirs, filepath.Dir(g)) {
			_ = syscall.Rmdir(d)
		}
	}
}

// unmountBelow removes the volumes of pods that a kubelet left.
func unmountBelow(dir string) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && (f[1] == dir || strings.HasPrefix(f[1], dir+"/")) {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}
