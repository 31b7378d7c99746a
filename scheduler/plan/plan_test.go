package plan

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

type nodeOpt func(*corev1.Node)

func mkNode(name, cpu string, opts ...nodeOpt) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("16Gi"), corev1.ResourcePods: resource.MustParse("110")}}}
	for _, o := range opts {
		o(n)
	}
	return n
}

func zone(z string) nodeOpt { return func(n *corev1.Node) { n.Labels["zone"] = z } }

func taint(effect corev1.TaintEffect) nodeOpt {
	return func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Value: "v", Effect: effect}} }
}

type podOpt func(*corev1.Pod)

func mkPod(name, cpu string, opts ...podOpt) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "x"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}}}}}
	for _, o := range opts {
		o(p)
	}
	return p
}

func antiAffinity(key string) podOpt {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
			{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}}}}}
	}
}

func spreadOver(key string) podOpt {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}}}
	}
}

func hostPort(n int32) podOpt {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: n, ContainerPort: n}}
	}
}

func TestSchedule(t *testing.T) {
	tests := []struct {
		name  string
		nodes []*corev1.Node
		have  map[string]*corev1.Pod // node -> pod
		pod   *corev1.Pod
		node  string
		why   string
	}{
		{name: "the emptier node", nodes: []*corev1.Node{mkNode("a", "4"), mkNode("b", "4")}, have: map[string]*corev1.Pod{"a": mkPod("p1", "2")}, pod: mkPod("p", "1"), node: "b"},
		{name: "no room", nodes: []*corev1.Node{mkNode("a", "1"), mkNode("b", "4", taint(corev1.TaintEffectNoSchedule)), mkNode("c", "4", taint(corev1.TaintEffectNoSchedule))}, pod: mkPod("p", "2"),
			why: "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."},
		{name: "cordoned", nodes: []*corev1.Node{mkNode("a", "1", func(n *corev1.Node) { n.Spec.Unschedulable = true })}, pod: mkPod("p", "1"),
			why: "0/1 nodes are available: 1 node(s) were unschedulable. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{name: "soft taint avoided", nodes: []*corev1.Node{mkNode("a", "8", taint(corev1.TaintEffectPreferNoSchedule)), mkNode("b", "4")}, pod: mkPod("p", "1"), node: "b"},
		{name: "selector", nodes: []*corev1.Node{mkNode("a", "8"), mkNode("b", "4", zone("z"))}, pod: mkPod("p", "1", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "z"} }), node: "b"},
		{name: "host port taken", nodes: []*corev1.Node{mkNode("a", "8")}, have: map[string]*corev1.Pod{"a": mkPod("p1", "1", hostPort(80))}, pod: mkPod("p", "1", hostPort(80)),
			why: "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
		{name: "apart from its like", nodes: []*corev1.Node{mkNode("a", "8"), mkNode("b", "2")}, have: map[string]*corev1.Pod{"a": mkPod("p1", "1")}, pod: mkPod("p", "1", antiAffinity("kubernetes.io/hostname")), node: "b"},
		{name: "an existing pod wants to be alone", nodes: []*corev1.Node{mkNode("a", "8"), mkNode("b", "2")}, have: map[string]*corev1.Pod{"a": mkPod("p1", "1", antiAffinity("kubernetes.io/hostname"))}, pod: mkPod("p", "1"), node: "b"},
		{name: "spread over zones", nodes: []*corev1.Node{mkNode("a", "8", zone("y")), mkNode("b", "2", zone("z"))}, have: map[string]*corev1.Pod{"a": mkPod("p1", "1")}, pod: mkPod("p", "1", spreadOver("zone")), node: "b"},
		{name: "no nodes", pod: mkPod("p", "1"), why: "no nodes available to schedule pods"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := New()
			for _, n := range tt.nodes {
				s.SetNode(n)
			}
			for node, p := range tt.have {
				s.AddPod(p, node)
			}
			node, d := Schedule(tt.pod, s, 1)
			if node != tt.node {
				t.Fatalf("node %q, want %q (%s)", node, tt.node, d.Message())
			}
			if node == "" && d.Message() != tt.why {
				t.Errorf("message\n%s\nwant\n%s", d.Message(), tt.why)
			}
		})
	}
}

// TestIndexAgreesWithScan holds the heap of a class against a look at all nodes.
func TestIndexAgreesWithScan(t *testing.T) {
	s := New()
	for i := range 50 {
		s.SetNode(mkNode(fmt.Sprint("n", i), fmt.Sprint(2+i%5)))
	}
	for i := range 400 {
		p := mkPod(fmt.Sprint("p", i), fmt.Sprint(100+100*(i%3), "m"))
		node, _ := Schedule(p, s, 7)
		r := newRequest(p)
		best := infeasible
		for _, n := range s.nodes {
			if r.admits(n) == "" && len(r.takes(n)) == 0 {
				best = max(best, s.local(r, n))
			}
		}
		got := infeasible
		if node != "" {
			got = s.local(r, s.nodes[s.index[node]])
		}
		if got != best {
			t.Fatalf("pod %d: node %q with score %d, the best is %d", i, node, got, best)
		}
		if node != "" {
			s.AddPod(p, node)
		}
		if i%7 == 0 {
			s.RemovePod(types.UID(fmt.Sprint("p", i/2)))
		}
	}
}

// BenchmarkSchedule is a decision and its effect at 5,000 nodes.
func BenchmarkSchedule(b *testing.B) {
	for name, opts := range map[string][]podOpt{"basic": nil, "spread": {spreadOver("zone")}} {
		b.Run(name, func(b *testing.B) {
			s := New()
			for i := range 5000 {
				s.SetNode(mkNode(fmt.Sprint("n", i), "64", zone(fmt.Sprint(i%3))))
			}
			i := 0
			for b.Loop() {
				p := mkPod(fmt.Sprint("p", i), "1m", opts...)
				node, d := Schedule(p, s, 1)
				if node == "" {
					b.Fatal(d.Message())
				}
				s.AddPod(p, node)
				i++
				if i >= 100000 {
					s.RemovePod(types.UID(fmt.Sprint("p", i-100000)))
				}
			}
		})
	}
}
