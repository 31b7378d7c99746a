// Package e2e tests the real binary with real containers: each test starts a
// cluster of its own, with its own name, ports and address ranges, and checks at
// its end that nothing of it is left on the machine.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"

	"knarr.dev/knarr/test/image"
	"knarr.dev/knarr/test/ports"
)

// root of the repository.
const root = "../.."

var binary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("KNARR_BINARY"); bin != "" {
		return filepath.Abs(bin)
	}
	if out, err := exec.Command("make", "-s", "-C", root, "build").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return filepath.Abs(root + "/bin/knarr")
})

// build compiles one of the repository's commands.
func build(out, dir string) error {
	c := exec.Command("go", "build", "-o", out, dir)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", dir, err, b)
	}
	return nil
}

// images is a registry with the test images, shared by all tests.
var images = sync.OnceValues(func() (string, error) {
	srv := httptest.NewServer(registry.New(registry.Logger(nopLogger())))
	host := strings.TrimPrefix(srv.URL, "http://")
	dir, err := os.MkdirTemp("", "knarr-e2e-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for _, cmd := range []string{"hello", "load"} {
		if err := build(filepath.Join(dir, cmd), root+"/test/"+cmd); err != nil {
			return "", err
		}
	}
	for _, v := range []string{"v1", "v2"} {
		spec := image.Spec{Busybox: true, Files: map[string]string{"/hello": filepath.Join(dir, "hello")}, Cmd: []string{"/hello"}, Env: []string{"VERSION=" + v}}
		if err := image.Push(host+"/hello:"+v, spec); err != nil {
			return "", err
		}
	}
	tools := image.Spec{Busybox: true, Files: map[string]string{"/load": filepath.Join(dir, "load")}, Cmd: []string{"sleep", "1000000"}}
	return host, image.Push(host+"/tools:1", tools)
})

// cluster is one running instance.
type cluster struct {
	t        *testing.T
	name     string
	dir      string
	data     string // the data directory
	flags    []string
	args     []string // that name and place it
	api      int
	config   *rest.Config
	client   *kubernetes.Clientset
	registry string
	proc     *exec.Cmd
	exited   chan struct{}
	log      *os.File
}

var instances atomic.Int32

// start boots a cluster and waits until it can be used.
func start(t *testing.T) *cluster {
	t.Helper()
	return startWith(t, func(dir string) string { return filepath.Join(dir, "data") })
}

// startWith boots a cluster whose data directory is where place says, with further
// flags.
func startWith(t *testing.T, place func(dir string) string, flags ...string) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces, mounts and control groups")
	}
	n := int(instances.Add(1)) + firstInstance()
	dir := t.TempDir()
	c := &cluster{t: t, name: fmt.Sprintf("e2e%d", n), dir: dir, data: place(dir), flags: flags}
	var err error
	if c.registry, err = images(); err != nil {
		t.Fatal(err)
	}
	c.api = freePort(t)
	c.args = []string{"--name", c.name, "--data-dir", c.data, "--run-dir", filepath.Join(dir, "run"), "--kubeconfig", filepath.Join(dir, "kubeconfig")}
	programs := bpfPrograms(t)
	t.Cleanup(func() { // runs last: after down
		c.noTraces(programs)
	})
	t.Cleanup(c.down)
	c.up()
	kc := filepath.Join(dir, "kubeconfig")
	if c.config, err = clientcmd.BuildConfigFromFlags("", kc); err != nil {
		t.Fatal(err)
	}
	c.config.QPS = -1
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	return c
}

// firstInstance keeps runs on one machine apart: KNARR_E2E_FIRST is added to the
// numbers of instances.
func firstInstance() int {
	n, err := strconv.Atoi(os.Getenv("KNARR_E2E_FIRST"))
	if err != nil {
		return 0
	}
	return n
}

func freePort(t *testing.T) int {
	t.Helper()
	p, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// octet makes the address ranges of instances differ: pods have 10.octet, services
// 10.(octet+50).
func (c *cluster) octet() int {
	var n int
	if _, err := fmt.Sscanf(c.name, "e2e%d", &n); err != nil {
		c.t.Fatal(err)
	}
	return 100 + n
}

// up starts the process in the foreground and waits for its "ready".
func (c *cluster) up() {
	c.t.Helper()
	bin, err := binary()
	if err != nil {
		c.t.Fatal(err)
	}
	octet := c.octet()
	args := append([]string{"up"}, c.args...)
	args = append(args, "--listen", fmt.Sprintf("127.0.0.1:%d", c.api), "--node-listen", fmt.Sprintf(":%d", freePort(c.t)),
		"--pod-cidr", fmt.Sprintf("10.%d.0.0/16", octet), "--service-cidr", fmt.Sprintf("10.%d.0.0/16", octet+50), "--node-name", "node-"+c.name)
	args = append(args, c.flags...)
	if c.log == nil {
		if c.log, err = os.Create(filepath.Join(c.dir, "log")); err != nil {
			c.t.Fatal(err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	c.proc = exec.Command(bin, args...)
	c.proc.Env = append(os.Environ(), "KNARR_READY_FD=1", "KNARR_DEBUG=mutation")
	c.proc.Stdout, c.proc.Stderr, c.proc.ExtraFiles = c.log, c.log, []*os.File{w}
	c.proc.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.proc.Start(); err != nil {
		c.t.Fatal(err)
	}
	w.Close()
	c.exited = make(chan struct{})
	go func(p *exec.Cmd, done chan struct{}) {
		_ = p.Wait()
		close(done)
	}(c.proc, c.exited)
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 16)); err != nil {
		c.t.Fatalf("knarr up: the node is not ready: %v\n%s", err, c.logs())
	}
}

func (c *cluster) logs() string {
	b, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// kill ends the process as a crash would, and waits until it is gone.
func (c *cluster) kill() {
	c.t.Helper()
	if err := c.proc.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	<-c.exited
}

func (c *cluster) down() {
	if strings.Contains(c.logs(), "shared object was changed") {
		c.t.Error("a component changed an object that it shares with others: see the log")
	}
	if c.t.Failed() {
		c.t.Logf("log of %s:\n%s", c.name, c.logs())
	}
	bin, err := binary()
	if err != nil {
		return
	}
	out, err := exec.Command(bin, append([]string{"down"}, c.args...)...).CombinedOutput()
	if err != nil {
		c.t.Errorf("knarr down: %v\n%s", err, out)
	}
	if c.exited != nil {
		<-c.exited
	}
}

// kubectl runs the embedded kubectl and returns its output.
func (c *cluster) kubectl(args ...string) (string, error) {
	return c.kubectlInput("", args...)
}

func (c *cluster) kubectlInput(input string, args ...string) (string, error) {
	bin, err := binary()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"kubectl"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.dir, "kubeconfig"))
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must runs kubectl and fails the test if it fails.
func (c *cluster) must(args ...string) string {
	c.t.Helper()
	out, err := c.kubectl(args...)
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// apply applies a manifest in which REGISTRY stands for the test registry.
func (c *cluster) apply(manifest string) {
	c.t.Helper()
	out, err := c.kubectlInput(strings.ReplaceAll(manifest, "REGISTRY", c.registry), "apply", "-f", "-")
	if err != nil {
		c.t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
}

// awaitPod waits by a watch until a pod satisfies cond.
func (c *cluster) awaitPod(name, what string, cond func(*corev1.Pod) bool) *corev1.Pod {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	sel := fields.OneTermEqualSelector("metadata.name", name).String()
	pods := c.client.CoreV1().Pods("default")
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = sel
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = sel
			return pods.Watch(ctx, o)
		},
	}
	ev, err := watchtools.UntilWithSync(ctx, lw, &corev1.Pod{}, nil, func(e watch.Event) (bool, error) {
		p, ok := e.Object.(*corev1.Pod)
		return ok && e.Type != watch.Deleted && cond(p), nil
	})
	if err != nil {
		out, _ := c.kubectl("get", "pod", name, "-o", "yaml")
		events, _ := c.kubectl("get", "events")
		c.t.Fatalf("pod %s is not %s: %v\n%s\n%s", name, what, err, out, events)
	}
	return ev.Object.(*corev1.Pod)
}

func ready(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// loadResult is what test/load prints.
type loadResult struct {
	Sent, Failed int
	Rate         float64
	P50          float64 `json:"p50_ms"`
	P99          float64 `json:"p99_ms"`
	Answers      map[string]int
	Failures     map[string]int
}

func parseLoad(t *testing.T, out []byte) loadResult {
	t.Helper()
	var r loadResult
	if err := json.Unmarshal(bytes.TrimSpace(out), &r); err != nil {
		t.Fatalf("load printed %q: %v", out, err)
	}
	return r
}

// eventually repeats check until it succeeds; the pace is that of check itself,
// which asks the cluster.
func (c *cluster) eventually(what string, check func() error) {
	c.t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if err = check(); err == nil {
			return
		}
	}
	c.t.Errorf("%s: %v", what, err)
}
