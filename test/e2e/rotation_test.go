package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A log that grows beyond 10 MiB is rotated while the container goes on writing,
// without a line lost or doubled between the files.
func TestLogRotation(t *testing.T) {
	c := start(t)
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: noisy}
spec:
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sh, -c, "seq 1 120000 | sed 's/$/ ................................................................/'; touch /tmp/first; while [ ! -e /tmp/go ]; do sleep 0.05; done; seq 120001 120010; sleep 1000000"]
`)
	c.awaitPod("noisy", "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	var files []string
	c.eventually("the log is rotated", func() error {
		var err error
		if files, err = filepath.Glob(filepath.Join(c.data, "logs", "default_noisy_*", "c", "0.log.*")); err != nil || len(files) == 0 {
			return fmt.Errorf("files %v, %v", files, err)
		}
		return nil
	})
	c.must("exec", "noisy", "--", "sh", "-c", "while [ ! -e /tmp/first ]; do sleep 0.05; done; touch /tmp/go")
	c.eventually("the last line is in the log", func() error {
		if out := c.must("logs", "noisy", "--tail=1"); out != "120010\n" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	lines := strings.Split(strings.TrimSpace(c.must("logs", "noisy")), "\n")
	first := 0
	if _, err := fmt.Sscan(lines[0], &first); err != nil {
		t.Fatalf("first line %q: %v", lines[0], err)
	}
	for i, l := range lines {
		var n int
		if _, err := fmt.Sscan(l, &n); err != nil || n != first+i {
			t.Fatalf("line %d of %d is %q, want %d", i, len(lines), l, first+i)
		}
	}
	if last := first + len(lines) - 1; last != 120010 {
		t.Errorf("the log ends with %d", last)
	}
}
