package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// QOSClass says how a pod's memory and CPU are backed: Guaranteed when all
// containers have limits equal to their requests, BestEffort when nothing is
// requested, else Burstable. Pod-level resources, where given, decide alone.
func QOSClass(p *corev1.Pod) corev1.PodQOSClass {
	if r := p.Spec.Resources; r != nil {
		return qosOf([]corev1.ResourceRequirements{*r})
	}
	var all []corev1.ResourceRequirements
	for i := range p.Spec.Containers {
		all = append(all, p.Spec.Containers[i].Resources)
	}
	for i := range p.Spec.InitContainers {
		all = append(all, p.Spec.InitContainers[i].Resources)
	}
	return qosOf(all)
}

func qosOf(all []corev1.ResourceRequirements) corev1.PodQOSClass {
	guaranteed, bestEffort := true, true
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	for _, r := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if request.Sign() > 0 || limit.Sign() > 0 {
				bestEffort = false
			}
			if limit.Sign() <= 0 {
				guaranteed = false
			}
			addTo(requests, name, request)
			addTo(limits, name, limit)
		}
	}
	switch {
	case bestEffort:
		return corev1.PodQOSBestEffort
	case !guaranteed:
		return corev1.PodQOSBurstable
	}
	for name, limit := range limits {
		if request := requests[name]; request.Cmp(limit) != 0 {
			return corev1.PodQOSBurstable
		}
	}
	return corev1.PodQOSGuaranteed
}

func addTo(l corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	sum := l[name]
	sum.Add(q)
	l[name] = sum
}
