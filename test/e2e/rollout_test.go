package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const helloDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      containers:
      - name: hello
        image: REGISTRY/hello:v1
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers: [{name: tools, image: REGISTRY/tools:1}]
`

// hello deploys the server and its client pod and returns the service's address.
func (c *cluster) hello() string {
	c.t.Helper()
	c.apply(helloDeployment)
	c.must("rollout", "status", "deployment/hello", "--timeout=60s")
	c.awaitPod("client", "ready", ready)
	svc, err := c.client.CoreV1().Services("default").Get(c.t.Context(), "hello", metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return svc.Spec.ClusterIP
}

// load is a load generator on this machine.
type load struct {
	t   *testing.T
	cmd *exec.Cmd
	out bytes.Buffer
}

func (c *cluster) load(args ...string) *load {
	c.t.Helper()
	bin := filepath.Join(c.dir, "load")
	if _, err := os.Stat(bin); err != nil {
		if err := build(bin, root+"/test/load"); err != nil {
			c.t.Fatal(err)
		}
	}
	l := &load{t: c.t, cmd: exec.Command(bin, args...)}
	l.cmd.Stdout, l.cmd.Stderr = &l.out, os.Stderr
	if err := l.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = l.cmd.Process.Kill() })
	return l
}

// stop ends the load and returns what became of it.
func (l *load) stop() loadResult {
	l.t.Helper()
	if err := l.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		l.t.Fatal(err)
	}
	_ = l.cmd.Wait() // exits with 1 if requests failed, which the result tells
	return parseLoad(l.t, l.out.Bytes())
}

func (l *load) check(who string, r loadResult) {
	l.t.Helper()
	l.t.Logf("%s: %d requests, %.0f/s, p50 %.2f ms, p99 %.2f ms, %d failed, answers %v", who, r.Sent, r.Rate, r.P50, r.P99, r.Failed, r.Answers)
	if r.Failed > 0 {
		l.t.Errorf("%s: %d of %d requests failed: %v", who, r.Failed, r.Sent, r.Failures)
	}
	if r.Sent < 500 { // the rate itself is the machine's: see docs/benchmarks.md
		l.t.Errorf("%s: only %d requests were sent", who, r.Sent)
	}
}

// A Deployment is rolled from one version to the other and back under load from
// the machine and from a pod; the server exits at once on SIGTERM and the
// manifest has no preStop. No request fails.
func TestRollingUpdateLosesNothing(t *testing.T) {
	c := start(t)
	ip := c.hello()
	if b, err := get(t.Context(), "http://"+ip); err != nil || !strings.HasPrefix(b, "hello v1") {
		t.Fatalf("service by its address: %q, %v", b, err)
	}
	if out := c.must("exec", "client", "--", "wget", "-qO-", "http://hello.default.svc.cluster.local"); !strings.HasPrefix(out, "hello v1") {
		t.Errorf("service by its name from a pod: %q", out)
	}
	const rate = 2000 // from each side
	host := c.load("-rate", fmt.Sprint(rate), "http://"+ip+"/")
	inPod := c.execLoad("client", "-rate", fmt.Sprint(rate), "http://hello/")
	for i := range 5 {
		c.must("set", "image", "deployment/hello", fmt.Sprintf("hello=%s/hello:v%d", c.registry, 2-i%2))
		c.must("rollout", "status", "deployment/hello", "--timeout=90s")
	}
	host.check("from the machine", host.stop())
	inPod.check("from a pod", inPod.stopIn(c, "client"))
	if out := c.must("rollout", "history", "deployment/hello"); strings.Count(out, "\n") < 4 {
		t.Errorf("history:\n%s", out)
	}
	c.must("rollout", "undo", "deployment/hello")
	c.must("rollout", "status", "deployment/hello", "--timeout=90s")
	d, err := c.client.AppsV1().Deployments("default").Get(t.Context(), "hello", metav1.GetOptions{})
	if err != nil || !strings.HasSuffix(image0(d), "hello:v1") {
		t.Errorf("after undo of v2: %v, %v", image0(d), err)
	}
}

func image0(d *appsv1.Deployment) string { return d.Spec.Template.Spec.Containers[0].Image }

// execLoad runs the load generator in a pod, by kubectl exec.
func (c *cluster) execLoad(pod string, args ...string) *load {
	c.t.Helper()
	bin, err := binary()
	if err != nil {
		c.t.Fatal(err)
	}
	l := &load{t: c.t, cmd: exec.Command(bin, append([]string{"kubectl", "--kubeconfig", filepath.Join(c.dir, "kubeconfig"), "exec", pod, "--", "/load"}, args...)...)}
	l.cmd.Stdout, l.cmd.Stderr = &l.out, os.Stderr
	if err := l.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = l.cmd.Process.Kill() })
	return l
}

// stopIn ends a load that runs in a pod and returns what became of it.
func (l *load) stopIn(c *cluster, pod string) loadResult {
	l.t.Helper()
	c.must("exec", pod, "--", "sh", "-c", "for p in /proc/[0-9]*; do if [ \"$(tr '\\0' ' ' <$p/cmdline | cut -d' ' -f1)\" = /load ]; then kill -TERM ${p#/proc/}; fi; done")
	_ = l.cmd.Wait()
	return parseLoad(l.t, l.out.Bytes())
}
