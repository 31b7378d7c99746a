package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"

	"knarr.dev/knarr/agent/devices/devicetest"
	"knarr.dev/knarr/agent/dra/dratest"
)

// One cluster, what a node gives its pods beside a sandbox.
func TestNodeFeatures(t *testing.T) {
	// The last CPU is for who has it alone, the others are the system's.
	last := runtime.NumCPU() - 1
	c := startWith(t, func(dir string) string { return filepath.Join(dir, "data") },
		"--cpu-manager-policy=static", fmt.Sprintf("--reserved-cpus=0-%d", max(last-1, 0)), "--topology-manager-policy=single-numa-node")
	for _, sub := range []struct {
		name string
		test func(*testing.T, *cluster)
	}{
		{"users of their own", ownUsers},
		{"devices of plugins", pluginDevices},
		{"CPUs alone", ownCPUs},
		{"all containers begin anew", restartAll},
		{"bearer tokens", bearerTokens},
		{"devices of claims", claims},
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

// A graceful end gives pods their time, on all nodes of the machine, and the API shows
// why they ended; what is kept can be started again.
func TestGracefulShutdown(t *testing.T) {
	c := startWith(t, func(dir string) string { return filepath.Join(dir, "data") }, "--nodes=2")
	pods := map[string]string{"polite": "node-" + c.name, "polite-2": "node-" + c.name + "-2"}
	for name, node := range pods {
		c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `}
spec:
  nodeName: ` + node + `
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sh, -c, "trap 'echo -n bye >/dev/termination-log; exit 3' TERM; sleep 100000 & wait"]
`)
		c.awaitPod(name, "ready", ready)
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"down", "--graceful", "--keep-data"}, c.args...)
	if out, err := exec.Command(bin, args...).CombinedOutput(); err != nil {
		t.Fatalf("knarr down --graceful: %v\n%s", err, out)
	}
	<-c.exited
	c.up()
	for name := range pods {
		p := c.awaitPod(name, "ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." {
			t.Errorf("%s: %s: %s", name, p.Status.Reason, p.Status.Message)
		}
		if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 3 || end.Message != "bye" {
			t.Errorf("the end of the container of %s: %+v", name, p.Status.ContainerStatuses[0].State)
		}
	}
	c.awaitNode(func(n *corev1.Node) bool {
		return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
	})
}

// Huge pages are a resource of the node, and files of the pod.
func TestHugePages(t *testing.T) {
	const file = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Skip("needs huge pages of 2 MiB: ", err)
	}
	if err := os.WriteFile(file, []byte("16"), 0); err != nil {
		t.Skip("needs to set huge pages aside: ", err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, before, 0); err != nil {
			t.Error(err)
		}
	})
	if got, _ := os.ReadFile(file); strings.TrimSpace(string(got)) != "16" {
		t.Skipf("the machine has set %s huge pages aside instead of 16", got)
	}
	c := start(t)
	c.awaitNode(func(n *corev1.Node) bool {
		have, memory, whole := n.Status.Allocatable["hugepages-2Mi"], n.Status.Allocatable.Memory(), n.Status.Capacity.Memory()
		return have.Value() == 32<<20 && whole.Value()-memory.Value() >= 32<<20
	})
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sleep, "100000"]
    resources: {limits: {hugepages-2Mi: 4Mi, memory: 32Mi}}
    volumeMounts: [{name: pages, mountPath: /pages}]
  volumes: [{name: pages, emptyDir: {medium: HugePages}}]
`)
	c.awaitPod("huge", "ready", ready)
	if out := c.must("exec", "huge", "--", "sh", "-c", "grep ' /pages ' /proc/mounts"); !strings.Contains(out, "hugetlbfs") || !strings.Contains(out, "pagesize=2M") {
		t.Errorf("the volume: %s", out)
	}
	group := ""
	for _, d := range c.containerProcs() {
		if b, err := os.ReadFile(d + "/cgroup"); err == nil {
			for _, l := range strings.Split(string(b), "\n") {
				if rest, ok := strings.CutPrefix(l, "0::"); ok {
					group = rest
				}
			}
		}
	}
	for name, want := range map[string]string{"hugetlb.2MB.max": "4194304", "hugetlb.1GB.max": "0"} {
		b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/unified", group, name))
		if err != nil {
			t.Logf("limits of huge pages are not checked: %v", err)
		} else if got := strings.TrimSpace(string(b)); got != want && name == "hugetlb.2MB.max" {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	c.must("delete", "pod", "huge")
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

// bearerTokens: monitors use the agent's server with a service account's token.
func bearerTokens(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: monitor}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: monitor}
rules: [{apiGroups: [""], resources: [nodes/metrics], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: monitor}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: monitor}
subjects: [{kind: ServiceAccount, name: monitor, namespace: default}]
`)
	token := strings.TrimSpace(c.must("create", "token", "monitor"))
	port := strings.TrimSpace(c.must("get", "nodes", "-o", "jsonpath={.items[0].status.daemonEndpoints.kubeletEndpoint.Port}"))
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer hc.CloseIdleConnections()
	for _, tc := range []struct {
		path, token string
		want        int
	}{{"/metrics", token, 200}, {"/pods", token, 403}, {"/metrics", "", 401}, {"/metrics", token + "x", 401}} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://127.0.0.1:"+port+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tc.token != "" {
			r.Header.Set("Authorization", "Bearer "+tc.token)
		}
		resp, err := hc.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s with token %.5s: %s, want %d", tc.path, tc.token, resp.Status, tc.want)
		}
	}
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

// logFlood: a container that writes as fast as it can leaves a bounded log, and the
// node serves.
func logFlood(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: flood}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sh, -c, "while [ ! -e /go ]; do sleep 0.1; done; exec yes 0123456789012345678901234567890123456789012345678901234567890123456789"]
`)
	p := c.awaitPod("flood", "ready", ready)
	dirs, err := filepath.Glob(filepath.Join(c.dir, "*", "*", "default_flood_"+string(p.UID)))
	if more, _ := filepath.Glob(filepath.Join(c.dir, "*", "default_flood_"+string(p.UID))); len(dirs) == 0 {
		dirs = more
	}
	if err != nil || len(dirs) != 1 {
		t.Fatalf("log folders: %q, %v", dirs, err)
	}
	most, done := make(chan int64), make(chan struct{})
	go func() {
		var top int64
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				files, _ := filepath.Glob(filepath.Join(dirs[0], "c", "*"))
				var sum int64
				for _, f := range files {
					if info, err := os.Stat(f); err == nil {
						sum += info.Size()
					}
				}
				top = max(top, sum)
			case <-done:
				most <- top
				return
			}
		}
	}()
	c.must("exec", "flood", "--", "touch", "/go")
	c.must("exec", "flood", "--", "sleep", "6")
	close(done)
	top := <-most
	t.Logf("at most %d MiB of logs", top>>20)
	if top < 20<<20 {
		t.Error("there was no flood")
	}
	if top > 300<<20 {
		t.Errorf("the log grew to %d MiB", top>>20)
	}
	c.must("delete", "pod", "flood")
}
