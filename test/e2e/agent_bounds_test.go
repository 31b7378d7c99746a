package e2e

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

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

// may tells whether this process has a capability.
func may(t *testing.T, capability int) bool {
	var have [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]); err != nil {
		t.Fatal(err)
	}
	return have[capability/32].Effective&(1<<(capability%32)) != 0
}

// podBounds: what a pod may be and have is bounded: its processes, its kernel parameters.
func podBounds(t *testing.T, c *cluster) {
	bomb := func(name string) string {
		return `
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `}
spec:
  securityContext: {sysctls: [{name: net.core.somaxconn, value: "77"}, {name: kernel.shm_rmid_forced, value: "1"}]}
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sh, -c, "b() { b | b & }; sleep 1000 & b; wait"]
`
	}
	c.apply(bomb("bomb"))
	c.awaitPod("bomb", "ready", ready)
	group := func(path string) string {
		for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			if b, err := os.ReadFile(filepath.Join(root, c.name, "kubepods", path)); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return ""
	}
	pod := c.awaitPod("bomb", "ready", ready)
	if got := group("besteffort/pod" + string(pod.UID) + "/pids.max"); got != "200" {
		t.Errorf("the pod may have %q tasks, want 200", got)
	}
	if most, err := strconv.Atoi(group("pids.max")); err != nil || most < 200 {
		t.Errorf("all pods may have %d tasks, %v", most, err)
	}
	c.apply(strings.Replace(bomb("calm"), "b() { b | b & }; sleep 1000 & b; wait", "sleep 1000", 1) + "    resources: {requests: {cpu: 100m}}\n")
	c.awaitPod("calm", "ready", ready)
	if out, err := c.kubectl("exec", "calm", "--", "cat", "/proc/sys/net/core/somaxconn"); err != nil || strings.TrimSpace(out) != "77" {
		t.Errorf("the sysctl is %q, %v", out, err)
	}
	for class, want := range map[string]string{"besteffort": "2", "burstable": "102"} { // calm asks for a tenth of a CPU
		weight := map[string]string{"2": "1", "102": "17"}[want]
		if got := group(class+"/cpu.shares") + group(class+"/cpu.weight"); got != want && got != weight {
			t.Errorf("pods of the class %s weigh %q, want %s or %s", class, got, want, weight)
		}
	}
	score := "-999"
	if !may(t, unix.CAP_SYS_RESOURCE) {
		score = "0" // it can only be raised
	}
	if own, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.proc.Process.Pid)); err != nil || strings.TrimSpace(string(own)) != score {
		t.Errorf("when memory is short knarr's own score is %q, %v, want %s", own, err, score)
	}
	if score, err := strconv.Atoi(strings.TrimSpace(c.must("exec", "calm", "--", "cat", "/proc/self/oom_score_adj"))); err != nil || score < 3 {
		t.Errorf("that of a container is %d, %v", score, err)
	}
	c.must("delete", "pod", "bomb", "calm", "--now")
	for name, want := range map[string]string{"kernel.msgmax": `forbidden sysctl: "kernel.msgmax" not allowlisted`, "vm.swappiness": `forbidden sysctl: "vm.swappiness" not allowlisted`} {
		c.apply(strings.Replace(bomb("unsafe"), "net.core.somaxconn", name, 1))
		p := c.awaitPod("unsafe", "refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "SysctlForbidden" || p.Status.Message != "Pod was rejected: "+want {
			t.Errorf("%s: %s: %s", name, p.Status.Reason, p.Status.Message)
		}
		c.must("delete", "pod", "unsafe")
	}
	c.awaitNode(func(n *corev1.Node) bool {
		kept := n.Status.Capacity.Memory().DeepCopy()
		kept.Sub(*n.Status.Allocatable.Memory())
		limit := strconv.FormatInt(n.Status.Capacity.Memory().Value()-1<<30, 10)
		if got := group("memory.limit_in_bytes") + group("memory.max"); kept.Value() < 1<<30 || got != limit {
			t.Errorf("%s of memory are kept from pods, which may have %s together, want %s", &kept, got, limit)
		}
		return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.ToString() == "slow=yes:PreferNoSchedule" })
	})
}
