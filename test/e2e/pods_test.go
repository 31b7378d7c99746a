package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/test/image"
)

const helloPod = `
apiVersion: v1
kind: Pod
metadata: {name: hello, labels: {app: hello}}
spec:
  containers:
  - name: c
    image: REGISTRY/hello:v1
    readinessProbe: {httpGet: {path: /, port: 8080}}
`

// A pod of a registry's image runs, answers, and is reached by logs, exec and
// port-forward of the real kubectl; at its end nothing is left.
func TestPod(t *testing.T) {
	c := start(t)
	c.apply(helloPod)
	pod := c.awaitPod("hello", "ready", ready)
	if out := c.must("get", "pods"); !strings.Contains(out, "hello") {
		t.Errorf("kubectl get pods:\n%s", out)
	}
	if out := c.must("exec", "hello", "--", "sh", "-c", "echo $0 in $(hostname)"); out != "sh in hello\n" {
		t.Errorf("exec printed %q", out)
	}
	if out, err := c.kubectl("exec", "hello", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(out, "exit code 7") {
		t.Errorf("exec of a failing command: %v, %s", err, out)
	}
	if out, err := c.kubectlInput("through stdin", "exec", "-i", "hello", "--", "cat"); err != nil || out != "through stdin" {
		t.Errorf("exec -i: %v, %q", err, out)
	}
	forward(t, c)
	if b, err := get(t.Context(), "http://"+pod.Status.PodIP+":8080"); err != nil || b != "hello v1 from hello" {
		t.Errorf("the pod answered %q, %v", b, err)
	}
	c.must("delete", "pod", "hello")
	if out := c.must("get", "pods"); !strings.Contains(out, "No resources found") {
		t.Errorf("after delete:\n%s", out)
	}
}

// get asks with the load generator's own client: one connection, one request.
func get(ctx context.Context, url string) (string, error) {
	out, err := exec.CommandContext(ctx, "curl", "-sS", "--max-time", "5", url).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func forward(t *testing.T, c *cluster) {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "kubectl", "--kubeconfig", c.dir+"/kubeconfig", "port-forward", "pod/hello", ":8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var port int
	if _, err := fmt.Fscanf(out, "Forwarding from 127.0.0.1:%d -> 8080", &port); err != nil {
		t.Errorf("port-forward: %v", err)
	} else if b, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d", port)); err != nil || b != "hello v1 from hello" {
		t.Errorf("through port-forward: %q, %v", b, err)
	}
	cancel()
	_ = cmd.Wait() // ended by cancel
}

// Logs are whole and in order, followed, cut and timed as kubectl asks; exit
// codes, restarts and previous logs are shown.
func TestLogsAndRestarts(t *testing.T) {
	c := start(t)
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: count}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: REGISTRY/tools:1, command: [sh, -c, "for i in $(seq 1 2000); do echo line $i; done; exit 3"]}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers:
  - {name: c, image: REGISTRY/tools:1, command: [sh, -c, "echo run $(date +%s%N); exit 4"]}
`)
	done := c.awaitPod("count", "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if s := done.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 3 || s.Reason != "Error" {
		t.Errorf("state of a container that exited with 3: %+v", s)
	}
	lines := strings.Split(strings.TrimSpace(c.must("logs", "count")), "\n")
	if len(lines) != 2000 || lines[0] != "line 1" || lines[1999] != "line 2000" {
		t.Errorf("%d lines, from %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
	if out := c.must("logs", "count", "--tail=2"); out != "line 1999\nline 2000\n" {
		t.Errorf("--tail=2 printed %q", out)
	}
	crashed := c.awaitPod("crash", "restarted", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount >= 1 && p.Status.ContainerStatuses[0].LastTerminationState.Terminated != nil
	})
	if s := crashed.Status.ContainerStatuses[0].LastTerminationState.Terminated; s.ExitCode != 4 {
		t.Errorf("last state: %+v", s)
	}
	c.awaitPod("crash", "in back-off", func(p *corev1.Pod) bool {
		w := p.Status.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	if out := c.must("logs", "crash", "--previous"); !strings.HasPrefix(out, "run ") {
		t.Errorf("previous log: %q", out)
	}
	c.must("delete", "pod", "count", "crash")
}

// An image that cannot be had is a clear event and state, not a hang.
func TestImageErrors(t *testing.T) {
	c := start(t)
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  containers: [{name: c, image: "REGISTRY/nothing:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: refused}
spec:
  containers: [{name: c, image: "127.0.0.1:1/hello:v1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: misnamed}
spec:
  containers: [{name: c, image: "Not a name"}]
`)
	waiting := func(reasons ...string) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			for _, s := range p.Status.ContainerStatuses {
				for _, r := range reasons {
					if s.State.Waiting != nil && s.State.Waiting.Reason == r {
						return true
					}
				}
			}
			return false
		}
	}
	c.awaitPod("absent", "in ErrImagePull", waiting("ErrImagePull", "ImagePullBackOff"))
	c.awaitPod("refused", "in ErrImagePull", waiting("ErrImagePull", "ImagePullBackOff"))
	c.awaitPod("misnamed", "in InvalidImageName", waiting("InvalidImageName"))
	out := c.must("get", "events", "--field-selector", "involvedObject.name=absent", "-o", "jsonpath={.items[*].message}")
	if !strings.Contains(out, "Failed to pull image") || !strings.Contains(out, "nothing:1") {
		t.Errorf("events of the absent image: %s", out)
	}
	c.must("delete", "pod", "--all", "--grace-period=0", "--force")
}

// An image that does not fit on the disk is a clear event; what was unpacked of it
// is gone, and the cluster goes on.
func TestFullDiskWhilePulling(t *testing.T) {
	var disk string
	c := startWith(t, func(dir string) string {
		disk = filepath.Join(dir, "disk")
		if err := os.Mkdir(disk, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=240m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
		return filepath.Join(disk, "data")
	})
	big := filepath.Join(c.dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 200<<20); err != nil { // zeros: small to send, large to unpack
		t.Fatal(err)
	}
	if err := image.Push(c.registry+"/big:1", image.Spec{Busybox: true, Files: map[string]string{"/big": big}}); err != nil {
		t.Fatal(err)
	}
	before := used(t, disk)
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: big}
spec:
  containers: [{name: c, image: "REGISTRY/big:1"}]
`)
	c.awaitPod("big", "refused for want of space", func(p *corev1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") && strings.Contains(w.Message, "the disk is almost full") {
				return true
			}
		}
		return false
	})
	c.must("delete", "pod", "big")
	c.eventually("what was unpacked is removed", func() error {
		if grown := used(t, disk) - before; grown > 64<<20 {
			return fmt.Errorf("%d MiB more are in use", grown>>20)
		}
		return nil
	})
	c.apply(helloPod)
	c.awaitPod("hello", "ready", ready)
}

// used counts the bytes in use on a file system.
func used(t *testing.T, path string) int64 {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize
}
