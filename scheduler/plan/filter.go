package plan

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// The reasons why a node is refused, in Kubernetes' words.
const (
	reasonUnschedulable = "node(s) were unschedulable"
	reasonName          = "node(s) didn't match the requested node name"
	reasonTaint         = "node(s) had untolerated taint(s)"
	reasonAffinity      = "node(s) didn't match Pod's node affinity/selector"
	reasonPorts         = "node(s) didn't have free ports for the requested pod ports"
	reasonSpread        = "node(s) didn't match pod topology spread constraints"
	reasonSpreadLabel   = "node(s) didn't match pod topology spread constraints (missing required label)"
	reasonPodAffinity   = "node(s) didn't match pod affinity rules"
	reasonAntiAffinity  = "node(s) didn't match pod anti-affinity rules"
	reasonExistingAnti  = "node(s) didn't satisfy existing pods anti-affinity rules"
)

// request is a pod with what is derived from it once for all nodes.
type request struct {
	pod      *corev1.Pod
	need     *need
	required nodeaffinity.RequiredNodeAffinity
	selects  bool // a node selector or required node affinity exists
	images   []string
}

func newRequest(pod *corev1.Pod) *request {
	r := &request{pod: pod, need: needOf(pod), required: nodeaffinity.GetRequiredNodeAffinity(pod)}
	a := pod.Spec.Affinity
	r.selects = len(pod.Spec.NodeSelector) > 0 || (a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil)
	for _, c := range pod.Spec.InitContainers {
		r.images = append(r.images, normalImage(c.Image))
	}
	for _, c := range pod.Spec.Containers {
		r.images = append(r.images, normalImage(c.Image))
	}
	return r
}

// admits checks what does not change with the pods on the node; empty means yes.
func (r *request) admits(n *node) (reason string) {
	if n.obj.Spec.Unschedulable && !tolerates(r.pod.Spec.Tolerations, &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return reasonUnschedulable
	}
	if r.pod.Spec.NodeName != "" && r.pod.Spec.NodeName != n.name {
		return reasonName
	}
	for i := range n.obj.Spec.Taints {
		t := &n.obj.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(r.pod.Spec.Tolerations, t) {
			return reasonTaint
		}
	}
	if r.selects {
		if ok, err := r.required.Match(n.obj); err != nil || !ok {
			return reasonAffinity
		}
	}
	return ""
}

// takes checks the room on the node; nil means yes.
func (r *request) takes(n *node) (reasons []string) {
	if n.clash(r.need.ports) {
		return []string{reasonPorts}
	}
	return n.short(r.need)
}

// tolerates tells whether one of the tolerations covers a taint.
func tolerates(ts []corev1.Toleration, taint *corev1.Taint) bool {
	for i := range ts {
		t := &ts[i]
		if (t.Effect != "" && t.Effect != taint.Effect) || (t.Key != "" && t.Key != taint.Key) {
			continue
		}
		switch t.Operator {
		case "", corev1.TolerationOpEqual:
			if t.Value == taint.Value {
				return true
			}
		case corev1.TolerationOpExists:
			return true
		}
	}
	return false
}
