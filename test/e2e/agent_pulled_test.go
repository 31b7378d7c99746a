package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// ownImages: what one namespace's secret has pulled, the pods of another cannot use, also
// after the node's agent was killed, until they have a secret that may.
func ownImages(t *testing.T, c *cluster, registry string) {
	// By this name no credential provider knows the registry.
	_, port, _ := strings.Cut(registry, ":")
	image := "localhost:" + port + "/tools:1"
	pod := func(namespace, name, policy, secret string) {
		t.Helper()
		c.apply(`
apiVersion: v1
kind: Pod
metadata: {namespace: ` + namespace + `, name: ` + name + `}
spec:
  terminationGracePeriodSeconds: 0
  imagePullSecrets: [{name: "` + secret + `"}]
  containers: [{name: c, image: "` + image + `", imagePullPolicy: ` + policy + `, command: [sleep, "100000"]}]
`)
	}
	shows := func(namespace, name string, want ...string) {
		t.Helper()
		c.eventually(fmt.Sprintf("pod %s/%s shows one of %q", namespace, name, want), func() error {
			out, err := c.kubectl("get", "pod", "-n", namespace, name, "-o", "jsonpath={.status.containerStatuses[0].state}")
			for _, w := range want {
				if err == nil && strings.Contains(out, w) {
					return nil
				}
			}
			return fmt.Errorf("its container is %s: %v", out, err)
		})
	}
	secret := func(namespace, name string) {
		t.Helper()
		c.must("create", "secret", "docker-registry", name, "-n", namespace, "--docker-server=localhost:"+port, "--docker-username=puller", "--docker-password=swordfish")
	}
	for _, ns := range []string{"pulled-a", "pulled-b"} {
		c.must("create", "namespace", ns)
	}
	secret("pulled-a", "mine")
	pod("pulled-a", "has", "IfNotPresent", "mine")
	shows("pulled-a", "has", `"running"`)
	for i, prefix := range []string{"before", "after"} {
		if i > 0 {
			c.kill()
			c.up()
		}
		pod("pulled-b", prefix, "IfNotPresent", "none")
		pod("pulled-b", prefix+"-never", "Never", "none")
		shows("pulled-b", prefix, `"ErrImagePull"`, `"ImagePullBackOff"`)
		shows("pulled-b", prefix+"-never", `"ErrImageNeverPull"`)
		pod("pulled-a", prefix+"-never", "Never", "mine")
		shows("pulled-a", prefix+"-never", `"running"`)
	}
	secret("pulled-b", "same")
	pod("pulled-b", "same", "Never", "same")
	shows("pulled-b", "same", `"running"`)
	c.must("delete", "namespace", "pulled-a", "pulled-b")
}
