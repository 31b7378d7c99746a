package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"

	"knarr.dev/knarr/agent/devices/devicetest"
	"knarr.dev/knarr/agent/dra/dratest"
)

// pluginDevices: a pod has the device that it asks for, also after its node's agent
// was killed, and no other pod gets it.
func pluginDevices(t *testing.T, c *cluster) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := filepath.Join(c.data, "kubelet", "device-plugins")
	p := &devicetest.Plugin{Resource: "example.com/zero", Answer: func(ids []string) *pluginapi.ContainerAllocateResponse {
		return &pluginapi.ContainerAllocateResponse{Envs: map[string]string{"ZERO": ids[0]},
			Devices: []*pluginapi.DeviceSpec{{HostPath: "/dev/fuse", ContainerPath: "/dev/" + ids[0], Permissions: "r"}}}
	}}
	p.Set(devicetest.Device("z0"), devicetest.Device("z1"))
	register := func(allocatable int64) {
		t.Helper()
		if err := p.Register(ctx, dir); err != nil {
			t.Fatal(err)
		}
		c.awaitNode(func(n *corev1.Node) bool {
			q := n.Status.Allocatable["example.com/zero"]
			return q.Value() == allocatable
		})
	}
	p.Start(t, dir)
	register(2)
	apply := func(name string) {
		c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sleep, "100000"]
    resources: {limits: {example.com/zero: 1}}
`)
		c.awaitPod(name, "ready", ready)
	}
	apply("zero-a")
	if out := c.must("exec", "zero-a", "--", "sh", "-c", "[ -c /dev/$ZERO ] && echo $ZERO; (: </dev/$ZERO) && echo read; (: >/dev/$ZERO) 2>/dev/null || echo refused"); out != "z0\nread\nrefused\n" {
		t.Errorf("the device: %q", out)
	}
	c.kill()
	c.up()
	register(2)
	apply("zero-b")
	if out := c.must("exec", "zero-b", "--", "sh", "-c", "echo $ZERO"); out != "z1\n" {
		t.Errorf("the second pod has device %q", out)
	}
	c.must("delete", "pod", "zero-a", "zero-b")
}

// claims: a pod has the devices of a ResourceClaim that its driver has prepared, also
// if the agent is killed in between; at its end they are given back.
func claims(t *testing.T, c *cluster) {
	spec := filepath.Join("/var/run/cdi", "knarr-test-"+c.name+".json")
	if err := os.MkdirAll(filepath.Dir(spec), 0o755); err != nil {
		t.Fatal(err)
	}
	kind := c.name + ".example.com/gpu"
	if err := os.WriteFile(spec, []byte(`{"cdiVersion":"0.6.0","kind":"`+kind+`","devices":[{"name":"g7","containerEdits":{"env":["GPU=g7"]}}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(spec) })
	d := &dratest.Driver{Name: c.name + ".example.com", Devices: func(string) []*draapi.Device {
		return []*draapi.Device{{RequestNames: []string{"any"}, PoolName: "pool", DeviceName: "g7", CdiDeviceIds: []string{kind + "=g7"}}}
	}}
	d.Start(t, filepath.Join(c.data, "kubelet", "plugins_registry"))
	c.apply(`
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: gpu}
spec: {devices: {requests: [{name: any, exactly: {deviceClassName: none}}]}}
`)
	patch := func(status string) {
		t.Helper()
		c.must("patch", "resourceclaim", "gpu", "--subresource=status", "--type=merge", "-p", `{"status":`+status+`}`)
	}
	allocation := `"allocation":{"devices":{"results":[{"request":"any","driver":"` + d.Name + `","pool":"pool","device":"g7"}]}}`
	patch("{" + allocation + "}")
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: claims}
spec:
  nodeName: node-` + c.name + `
  terminationGracePeriodSeconds: 0
  resourceClaims: [{name: mine, resourceClaimName: gpu}]
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sleep, "100000"]
    resources: {claims: [{name: mine}]}
`)
	c.eventually("the pod's waiting is explained", func() error {
		out, err := c.kubectl("get", "events", "--field-selector", "involvedObject.name=claims,reason=FailedPrepareDynamicResources", "-o", "jsonpath={.items[*].message}")
		if err != nil || !strings.Contains(out, "it is not reserved for pod claims") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	uid := c.must("get", "pod", "claims", "-o", "jsonpath={.metadata.uid}")
	patch(`{` + allocation + `,"reservedFor":[{"resource":"pods","name":"claims","uid":"` + uid + `"}]}`)
	c.awaitPod("claims", "ready", ready)
	if out := c.must("exec", "claims", "--", "sh", "-c", "echo $GPU"); out != "g7\n" {
		t.Errorf("the device: %q", out)
	}
	c.kill()
	c.up()
	c.must("delete", "pod", "claims")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := d.Wait(ctx, func(prepared []string) bool { return len(prepared) == 0 }); err != nil {
		t.Errorf("still prepared: %q after %q", d.Prepared(), d.Calls())
	}
}

// lockedRegistry is the tests' registry behind a password, which a credential provider
// plugin knows: its configuration and the folder of the program.
func lockedRegistry(t *testing.T) (address, config, bin string) {
	t.Helper()
	open, err := images()
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: open})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "puller" || password != "swordfish" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	address, bin = strings.TrimPrefix(srv.URL, "http://"), t.TempDir()
	config = filepath.Join(bin, "config.yaml")
	for path, text := range map[string]string{
		config: `
kind: CredentialProviderConfig
apiVersion: kubelet.config.k8s.io/v1
providers: [{name: knows, matchImages: ["` + address + `"], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1}]
`,
		filepath.Join(bin, "knows"): `#!/bin/sh
echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{"` + address + `":{"username":"puller","password":"swordfish"}}}'
`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return address, config, bin
}

// credentials: an image behind a password is pulled with what a plugin knows.
func credentials(t *testing.T, c *cluster, registry string) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: locked}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "` + registry + `/tools:1", imagePullPolicy: Always, command: [sleep, "100000"]}]
`)
	c.awaitPod("locked", "ready", ready)
	c.must("delete", "pod", "locked")
}
