package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/apiserver/registry"
)

// nodeTaint keeps pods off a new node until the node controller has seen it Ready.
func nodeTaint() registry.Admission {
	return registry.Admission{Name: "TaintNodesByCondition", Mutate: func(_ context.Context, a *registry.Attributes) error {
		if !creates(a, nodes) {
			return nil
		}
		n, taint := a.Object.(*corev1.Node), corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
		if !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&taint) }) {
			n.Spec.Taints = append(n.Spec.Taints, taint)
		}
		return nil
	}}
}
