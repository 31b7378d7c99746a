package eviction

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/utils/ptr"
)

// Victims chooses who gives way to a pod that must run: of others, those that may go
// (by rising priority, those first that free most), until the
// requests of all fit into what the node has. As few go as this order allows; nil if
// even all of them would not do.
func Victims(p *corev1.Pod, others []*corev1.Pod, allocatable corev1.ResourceList, may func(*corev1.Pod) bool) []*corev1.Pod {
	short := shortage(p, others, allocatable)
	candidates := slices.DeleteFunc(slices.Clone(others), func(o *corev1.Pod) bool { return !may(o) })
	slices.SortStableFunc(candidates, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(ptr.Deref(a.Spec.Priority, 0), ptr.Deref(b.Spec.Priority, 0)), cmp.Compare(share(b, short), share(a, short)))
	})
	var out []*corev1.Pod
	for _, c := range candidates {
		if len(short) == 0 {
			break
		}
		helps := false
		for name, q := range claims(c) {
			if missing, ok := short[name]; ok && q.Sign() > 0 {
				helps = true
				if missing.Sub(q); missing.Sign() <= 0 {
					delete(short, name)
				} else {
					short[name] = missing
				}
			}
		}
		if helps {
			out = append(out, c)
		}
	}
	if len(short) > 0 {
		return nil
	}
	return out
}

// claims are a pod's requests, and the one place among pods that it takes.
func claims(p *corev1.Pod) corev1.ResourceList {
	r := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	r[corev1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
	return r
}

// shortage is what lacks for a pod beside others.
func shortage(p *corev1.Pod, others []*corev1.Pod, allocatable corev1.ResourceList) corev1.ResourceList {
	need := claims(p)
	for _, o := range others {
		for name, q := range claims(o) {
			if sum, ok := need[name]; ok {
				sum.Add(q)
				need[name] = sum
			}
		}
	}
	for name, q := range need {
		have, known := allocatable[name]
		if q.Sub(have); !known || q.Sign() <= 0 {
			delete(need, name)
			continue
		}
		need[name] = q
	}
	return need
}

// share is how much of what lacks a pod would free, 1 for all of each.
func share(p *corev1.Pod, short corev1.ResourceList) float64 {
	total := 0.0
	r := claims(p)
	for name, missing := range short {
		if q, ok := r[name]; ok && missing.Sign() > 0 {
			total += min(1, q.AsApproximateFloat64()/missing.AsApproximateFloat64())
		}
	}
	return total
}
