package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/test/ports"
)

// One cluster, what a node gives its pods beside a sandbox.
func TestNodeFeatures(t *testing.T) {
	// The last CPU is for who has it alone, the others are the system's.
	last := runtime.NumCPU() - 1
	locked, providers, programs := lockedRegistry(t)
	healthz, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	c := startWith(t, func(dir string) string { return filepath.Join(dir, "data") },
		"--image-credential-provider-config="+providers, "--image-credential-provider-bin-dir="+programs,
		"--cpu-manager-policy=static", fmt.Sprintf("--reserved-cpus=0-%d", max(last-1, 0)), "--topology-manager-policy=single-numa-node",
		fmt.Sprintf("--healthz-port=%d", healthz), "--pod-max-pids=200", "--allowed-unsafe-sysctls=net.core.*", "--register-with-taints=slow=yes:PreferNoSchedule",
		"--system-reserved=memory=1Gi,pid=1000")
	for _, sub := range []struct {
		name string
		test func(*testing.T, *cluster)
	}{
		{"users of their own", ownUsers},
		{"bounds of pods", podBounds},
		{"devices of plugins", pluginDevices},
		{"CPUs alone", ownCPUs},
		{"all containers begin anew", restartAll},
		{"bearer tokens", bearerTokens},
		{"credentials of a provider", func(t *testing.T, c *cluster) { credentials(t, c, locked) }},
		{"images of others", func(t *testing.T, c *cluster) { ownImages(t, c, locked) }},
		{"devices of claims", claims},
		{"what monitors read", func(t *testing.T, c *cluster) { monitored(t, c, healthz) }},
		{"a flood of logs", logFlood},
	} {
		t.Run(sub.name, func(t *testing.T) {
			whole := c.t
			defer func() { c.t = whole }()
			c.t = t
			sub.test(t, c)
		})
	}
}

// ownUsers: root in a pod with hostUsers: false is nobody outside, and its volumes
// show their owners as if it were not so.
func ownUsers(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: owned}
data: {file: "one"}
---
apiVersion: v1
kind: Pod
metadata: {name: own-users}
spec:
  hostUsers: false
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sh, -c, "trap 'exit 0' TERM; sleep 100000 & wait"]
    volumeMounts: [{name: config, mountPath: /config}, {name: empty, mountPath: /empty}, {name: memory, mountPath: /memory},
      {name: empty, mountPath: /part, subPath: a/b}, {name: config, mountPath: /one, subPath: file}]
  volumes:
  - {name: config, configMap: {name: owned}}
  - {name: empty, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
`)
	c.awaitPod("own-users", "ready", ready)
	f := strings.Fields(c.must("exec", "own-users", "--", "cat", "/proc/self/uid_map"))
	if len(f) != 3 || f[0] != "0" || f[1] != "65536" || f[2] != "65536" {
		t.Errorf("the pod's map of users is %v", f)
	}
	for command, want := range map[string]string{
		"id -u": "0",
		"stat -c %u:%g /config/file /config/..data/file /etc/hosts": "0:0\n0:0\n0:0",
		"cat /config/file /one": "oneone",
		"stat -c %u:%g /one && echo x >/part/f && stat -c %u:%g /part/f /empty/a/b/f": "0:0\n0:0\n0:0",
		"for d in /empty /memory; do echo x >$d/f && stat -c %u:%g $d/f; done":        "0:0\n0:0",
	} {
		if out, err := c.kubectl("exec", "own-users", "--", "sh", "-c", command); err != nil || strings.TrimSpace(out) != want {
			t.Errorf("%s\nprinted %q (%v), want %q", command, out, err, want)
		}
	}
	c.must("delete", "pod", "own-users")
}

// awaitNode waits until the cluster's node is as wanted.
func (c *cluster) awaitNode(ok func(*corev1.Node) bool) {
	c.t.Helper()
	var last *corev1.Node
	c.eventually("the node as wanted", func() error {
		n, err := c.client.CoreV1().Nodes().Get(context.Background(), "node-"+c.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if last = n; !ok(n) {
			return fmt.Errorf("its status is %+v", last.Status)
		}
		return nil
	})
}

// ownCPUs: a container that has a CPU alone runs on it, and no other container does.
func ownCPUs(t *testing.T, c *cluster) {
	last := runtime.NumCPU() - 1
	if last < 1 {
		t.Skip("needs two CPUs: one is the system's")
	}
	manifest := `
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sleep, "100000"]
    resources: {limits: LIMITS}
`
	runsOn := func(pod, want string) {
		t.Helper()
		c.eventually(pod+" on CPUs "+want, func() error {
			out, err := c.kubectl("exec", pod, "--", "grep", "Cpus_allowed_list", "/proc/1/status")
			if _, got, _ := strings.Cut(strings.TrimSpace(out), "\t"); err != nil || got != want {
				return fmt.Errorf("it may use %q: %v", got, err)
			}
			return nil
		})
	}
	all, rest, one := fmt.Sprintf("0-%d", last), fmt.Sprintf("0-%d", last-1), fmt.Sprint(last)
	if last == 1 {
		rest = "0"
	}
	apply := func(name, limits string) {
		c.apply(strings.NewReplacer("NAME", name, "LIMITS", limits).Replace(manifest))
		c.awaitPod(name, "ready", ready)
	}
	apply("shares", "{}")
	runsOn("shares", all)
	apply("alone", "{cpu: 1, memory: 64Mi}")
	runsOn("alone", one)
	runsOn("shares", rest)
	c.kill()
	c.up()
	runsOn("alone", one)
	c.apply(strings.NewReplacer("NAME", "second", "LIMITS", "{cpu: 1, memory: 64Mi}").Replace(strings.Replace(manifest, "spec:", "spec:\n  nodeName: node-"+c.name, 1)))
	c.awaitPod("second", "refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	c.must("delete", "pod", "alone", "second")
	runsOn("shares", all)
	apply("alone", "{cpu: 1, memory: 64Mi}")
	runsOn("alone", one)
	c.must("delete", "pod", "alone", "shares")
}

// A container that says so has all containers of its pod begin anew, in their place.
func restartAll(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: init, image: REGISTRY/tools:1, command: [sh, -c, "echo init >>/v/f"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - name: worker
    image: REGISTRY/tools:1
    command: [sh, -c, "echo worker >>/v/f; sleep 100000"]
    volumeMounts: [{name: v, mountPath: /v}]
  - name: boss
    image: REGISTRY/tools:1
    command: [sh, -c, "while [ $(grep -c worker /v/f) -lt 2 ]; do sleep 0.1; [ -e /v/go ] && rm /v/go && exit 88; done; sleep 100000"]
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]
    volumeMounts: [{name: v, mountPath: /v}]
`)
	p := c.awaitPod("again", "ready", ready)
	c.must("exec", "again", "-c", "worker", "--", "touch", "/v/go")
	q := c.awaitPod("again", "begun anew", func(p *corev1.Pod) bool {
		return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[1].RestartCount == 1
	})
	if p.Status.PodIP != q.Status.PodIP {
		t.Errorf("address %s became %s", p.Status.PodIP, q.Status.PodIP)
	}
	if out := c.must("exec", "again", "-c", "worker", "--", "cat", "/v/f"); out != "init\nworker\ninit\nworker\n" {
		t.Errorf("order: %q", out)
	}
	c.must("delete", "pod", "again")
}
