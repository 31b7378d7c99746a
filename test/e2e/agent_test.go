package e2e

import (
	"strings"
	"testing"
)

// One cluster, what a node gives its pods beside a sandbox.
func TestNodeFeatures(t *testing.T) {
	c := start(t)
	for _, sub := range []struct {
		name string
		test func(*testing.T, *cluster)
	}{
		{"users of their own", ownUsers},
	} {
		t.Run(sub.name, func(t *testing.T) {
			own := *c
			own.t = t
			sub.test(t, &own)
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
    volumeMounts: [{name: config, mountPath: /config}, {name: empty, mountPath: /empty}, {name: memory, mountPath: /memory}]
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
		"cat /config/file": "one",
		"for d in /empty /memory; do echo x >$d/f && stat -c %u:%g $d/f; done": "0:0\n0:0",
	} {
		if out, err := c.kubectl("exec", "own-users", "--", "sh", "-c", command); err != nil || strings.TrimSpace(out) != want {
			t.Errorf("%s\nprinted %q (%v), want %q", command, out, err, want)
		}
	}
	c.must("delete", "pod", "own-users")
}
