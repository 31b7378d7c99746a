package agent

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/cpuset"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/memory"
	"knarr.dev/knarr/agent/topology"
	"knarr.dev/knarr/client"
)

func guaranteed(cpu, mem string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		l := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(mem)}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: l, Requests: l}
	}
}

// eight invents a machine of two sockets with a NUMA node each, of four CPUs and 8 GiB.
func eight(t *testing.T) string {
	return invent(t, map[int][]int{0: {0, 1, 2, 3}, 1: {4, 5, 6, 7}})
}

func TestExclusiveCPUsAndMemory(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Exclusive = Exclusive{CPUPolicy: "static", MemoryPolicy: "Static", ReservedCPUs: cpuset.New(0), Sys: eight(t),
			ReservedMemory: map[int]memory.Amounts{0: {corev1.ResourceMemory: 1 << 30}}, Topology: topology.Config{Policy: topology.Restricted}}
		c.Capacity = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("16Gi")}
	})
	node := w.run()
	n := w.node()
	if cpu, mem := n.Status.Allocatable.Cpu(), n.Status.Allocatable.Memory(); cpu.Value() != 7 || mem.Value() != 15<<30 {
		t.Errorf("allocatable %v and %v", cpu, mem)
	}
	of := func(pod string) (string, string) {
		for _, c := range w.cri.Containers("c") {
			if c.Config.Labels["io.kubernetes.pod.name"] == pod {
				r := c.Config.Linux.Resources
				return r.CpusetCpus, r.CpusetMems
			}
		}
		t.Fatalf("pod %s has no container", pod)
		return "", ""
	}
	sharers := func(cpus string) {
		t.Helper()
		w.runtime("the sharing container on CPUs "+cpus, func(r *critest.Runtime) bool {
			got, _ := r.CPUs("shares")
			return got == cpus
		})
	}
	w.pod("shares", nil)
	w.wait("shares", "running", running)
	if cpus, mems := of("shares"); cpus != "0-7" || mems != "" {
		t.Errorf("the sharing pod: %s, %s", cpus, mems)
	}
	w.pod("a", guaranteed("3", "1Gi"))
	w.wait("a", "running", running)
	if cpus, mems := of("a"); cpus != "1-3" || mems != "0" {
		t.Errorf("pod a: CPUs %s, memory of %s", cpus, mems)
	}
	for _, c := range w.cri.Containers("c") {
		if q := c.Config.Linux.Resources.CpuQuota; c.Config.Labels["io.kubernetes.pod.name"] == "a" && q != 0 {
			t.Errorf("a container that has its CPUs alone has a quota of %d", q)
		}
	}
	for _, box := range w.cri.Sandboxes() {
		if q := box.Linux.Resources.CpuQuota; box.Metadata.Name == "a" && q != 0 {
			t.Errorf("a pod that has its CPUs alone has a quota of %d", q)
		}
	}
	sharers("0,4-7")
	w.pod("b", guaranteed("3", "7Gi"))
	w.wait("b", "running", running)
	if cpus, mems := of("b"); cpus != "4-6" || mems != "1" {
		t.Errorf("pod b: CPUs %s, memory of %s", cpus, mems)
	}
	// What is set aside cannot be resized.
	held, _ := w.api.Cache(client.Pods, "").Get("default", "a")
	if no := node.pods.resizable(node.node)(held.(*corev1.Pod)); no == nil || no.Reason != corev1.PodReasonInfeasible || no.Message != "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy" {
		t.Errorf("a resize: %+v", no)
	}
	// One CPU is left on node 1, memory for it on node 0.
	w.pod("c", guaranteed("1", "2Gi"))
	c := w.wait("c", "failed", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if c.Status.Reason != "TopologyAffinityError" || c.Status.Message != "Pod was rejected: Resources cannot be allocated with Topology locality" {
		t.Errorf("%s: %s", c.Status.Reason, c.Status.Message)
	}
	// Who has what survives the agent.
	w.stop()
	w.run()
	w.delete("a", ptr.To(int64(0)))
	w.gone("a")
	sharers("0-3,7")
	w.pod("d", guaranteed("2", "1Gi"))
	w.wait("d", "running", running)
	if cpus, mems := of("d"); cpus != "1-2" || mems != "0" {
		t.Errorf("pod d: CPUs %s, memory of %s", cpus, mems)
	}
}
