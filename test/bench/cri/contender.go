package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/cri"
)

// group is the control group of all that is measured; knarr's instance has its name.
const group = "bcri"

// contender is one runtime, running.
type contender struct {
	name, dir, knarr, registry string
	handler                    string
	proc                       *exec.Cmd
	client                     *cri.Client
	down                       []string // the command that removes it
}

const knarrConfig = `name: %s
dataDir: %s/data
runDir: %[2]s/run
network: {podCIDR: 10.230.0.0/16, nodePodCIDR: 10.230.0.0/20}
registries:
  %[3]s: {plainHTTP: true}
`

// Lower OOM scores than its own need CAP_SYS_RESOURCE, which a machine may lack.
const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "%[3]s"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "%[1]s/net.d"
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "%[1]s/certs"
`

// The simplest network that Debian's plugins make: a pair of links for each pod.
const cniConfig = `{"cniVersion": "0.4.0", "name": "bcri", "plugins": [{"type": "ptp", "ipam": {
  "type": "host-local", "dataDir": "%s/ipam", "ranges": [[{"subnet": "10.231.0.0/20"}]]}}]}`

// start starts the runtime and waits until it answers.
func (c *contender) start(ctx context.Context) error {
	socket, args, err := c.prepare()
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c.proc = exec.Command(args[0], args[1:]...)
	c.proc.Stdout, c.proc.Stderr = log, log
	c.proc.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.proc.Start(); err != nil {
		return err
	}
	if c.client, err = cri.Dial(socket); err != nil {
		return errors.Join(err, c.stop())
	}
	end := time.Now().Add(30 * time.Second)
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for ; ; <-look.C {
		_, err := c.client.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
		if err == nil {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			b, _ := os.ReadFile(log.Name())
			return errors.Join(fmt.Errorf("it does not answer: %w\n%s", err, b), c.stop())
		}
	}
}

// prepare writes the runtime's files and tells its socket and how it is started.
func (c *contender) prepare() (socket string, args []string, err error) {
	kind, program, _ := strings.Cut(c.name, "+")
	files := map[string]string{}
	if kind == "containerd" {
		socket, args = c.dir+"/sock", []string{"containerd", "--config", c.dir + "/config.toml"}
		files["config.toml"] = fmt.Sprintf(containerdConfig, c.dir, c.registry, program)
		files["certs/"+c.registry+"/hosts.toml"] = fmt.Sprintf("server = %q\n", "http://"+c.registry)
		files["net.d/10-bcri.conflist"] = fmt.Sprintf(cniConfig, c.dir)
	} else {
		_, c.handler, _ = strings.Cut(c.name, ":")
		config := c.dir + "/config.yaml"
		socket, args = c.dir+"/run/cri.sock", []string{c.knarr, "runtime", "--config", config}
		c.down = []string{c.knarr, "down", "--config", config}
		files["config.yaml"] = fmt.Sprintf(knarrConfig, group, c.dir, c.registry)
	}
	for name, text := range files {
		p := filepath.Join(c.dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return "", nil, err
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			return "", nil, err
		}
	}
	return socket, args, nil
}

// stop removes the pods, ends the runtime and clears away what it leaves.
func (c *contender) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	if c.client != nil {
		if list, err := c.client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); err == nil {
			d := &driver{contender: c}
			for _, p := range list.Items {
				errs = append(errs, d.remove(ctx, p.Id))
			}
		}
		c.client.Close()
	}
	_ = c.proc.Process.Signal(syscall.SIGTERM)
	_ = c.proc.Wait() // ended by the signal
	if c.down != nil {
		if out, err := exec.Command(c.down[0], c.down[1:]...).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("knarr down: %w: %s", err, out))
		}
	}
	unmountBelow(c.dir)
	for _, g := range groupDirs() {
		removeTree(g)
	}
	return errors.Join(errs...)
}

// groupDirs are our control group's folders in all hierarchies.
func groupDirs() []string {
	var out []string
	for _, f := range mounts() {
		if f[2] == "cgroup" || f[2] == "cgroup2" {
			out = append(out, filepath.Join(f[1], group))
		}
	}
	return out
}

// mounts are the lines of /proc/self/mounts, in fields.
func mounts() [][]string {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		panic(err) // without /proc there are no figures at all
	}
	var out [][]string
	for line := range strings.Lines(string(b)) {
		out = append(out, strings.Fields(line))
	}
	return out
}

func unmountBelow(dir string) {
	for _, f := range slices.Backward(mounts()) {
		if strings.HasPrefix(f[1], dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}

// removeTree removes empty folders from the deepest up.
func removeTree(root string) {
	for _, d := range slices.Backward(folders(root)) {
		_ = syscall.Rmdir(d)
	}
}

// folders lists root and all folders below it, each before what it holds.
func folders(root string) []string {
	var dirs []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // what is gone is gone
	})
	return dirs
}
