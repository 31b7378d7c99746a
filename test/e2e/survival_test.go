package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// knarr is killed ten times under load. Containers keep their processes, requests
// do not fail, logs are whole, nothing is restarted, and a container that ends
// while nobody looks reports its true exit code.
func TestKill(t *testing.T) {
	c := start(t)
	ip := c.hello()
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  containers:
  - {name: c, image: REGISTRY/tools:1, command: [sh, -c, "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.005; done"]}
`)
	c.awaitPod("talker", "ready", ready)
	before := c.processes()
	if len(before) != 4 {
		t.Fatalf("processes of 4 containers: %v", before)
	}
	host := c.load("-rate", "500", "http://"+ip+"/")
	for i := range 10 {
		mortal := fmt.Sprintf("mortal-%d", i)
		c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: REGISTRY/tools:1, command: [sh, -c, "echo started; while [ ! -e /tmp/end ]; do sleep 0.01; done; exit %d"]}
`, mortal, 40+i))
		c.awaitPod(mortal, "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		// The process that is to end while knarr is dead is told to by its own file
		// system, which this machine reaches through /proc.
		root := c.rootOf(mortal)
		c.kill()
		touch(t, root+"/tmp/end")
		awaitGone(t, root)
		c.up()
		p := c.awaitPod(mortal, "ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != int32(40+i) {
			t.Errorf("round %d: a container that exited with %d while knarr was dead is reported as %+v", i, 40+i, s)
		}
	}
	host.check("from the machine", host.stop())
	for key, pid := range before {
		if after := c.processes(); after[key] != pid {
			t.Errorf("container %s had process %s and has %s", key, pid, after[key])
		}
	}
	pods, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount != 0 {
				t.Errorf("pod %s was restarted %d times", p.Name, s.RestartCount)
			}
		}
	}
	c.checkTalk("talker")
}

// checkTalk reads a talker's log: no line may be missing, doubled or torn.
func (c *cluster) checkTalk(pod string) {
	c.t.Helper()
	lines := strings.Split(strings.TrimSpace(c.must("logs", pod)), "\n")
	if len(lines) < 200 {
		c.t.Errorf("only %d lines", len(lines))
	}
	for i, l := range lines {
		if want := fmt.Sprintf("line %d", i+1); l != want {
			c.t.Errorf("line %d of the log is %q", i+1, l)
			return
		}
	}
}
