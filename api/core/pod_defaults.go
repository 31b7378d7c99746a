package core

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/resource"
)

// defaultPod fills a pod. Unlike a template, a pod also gets requests from its
// limits and host ports from its container ports.
func defaultPod(p *corev1.Pod) {
	DefaultPodSpec(&p.Spec)
	for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range containers {
			requestLimits(&containers[i].Resources)
			if p.Spec.HostNetwork {
				for j := range containers[i].Ports {
					orElse(&containers[i].Ports[j].HostPort, containers[i].Ports[j].ContainerPort)
				}
			}
		}
	}
	defaultPodResources(p)
	orNew(&p.Spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	// Both fields name the pod's addresses; the singular wins where they differ.
	switch s := &p.Status; {
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
}

func requestLimits(r *corev1.ResourceRequirements) {
	if r.Limits == nil {
		return
	}
	if r.Requests == nil {
		r.Requests = corev1.ResourceList{}
	}
	for name, q := range r.Limits {
		if _, ok := r.Requests[name]; !ok {
			r.Requests[name] = q.DeepCopy()
		}
	}
}

// defaultPodResources fills the pod-level requests: what the containers request
// together, and where they request nothing, the pod-level limit.
func defaultPodResources(p *corev1.Pod) {
	r := p.Spec.Resources
	if r == nil || len(r.Limits) == 0 {
		return
	}
	requests := maps.Clone(r.Requests)
	if requests == nil {
		requests = corev1.ResourceList{}
	}
	for name, q := range resource.AggregateContainerRequests(p, resource.PodResourcesOptions{}) {
		huge := strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if _, ok := requests[name]; !ok && !huge && resource.IsSupportedPodLevelResource(name) {
			requests[name] = q.DeepCopy()
		}
	}
	for name, q := range r.Limits {
		if _, ok := requests[name]; !ok && resource.IsSupportedPodLevelResource(name) {
			requests[name] = q.DeepCopy()
		}
	}
	if len(requests) > 0 {
		r.Requests = requests
	}
}

// preparePod gives a new pod its first status.
func preparePod(p *corev1.Pod) {
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(p)}
	if len(p.Spec.SchedulingGates) > 0 {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates", LastTransitionTime: p.CreationTimestamp,
		}}
	}
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		least := int64(1)
		p.Spec.TerminationGracePeriodSeconds = &least
	}
	mergeMatchLabelKeys(p)
}

// preparePodUpdate keeps the status.
func preparePodUpdate(p, old *corev1.Pod) {
	p.Status = *old.Status.DeepCopy()
}

// preparePodStatus keeps what a kubelet may not change.
func preparePodStatus(p, old *corev1.Pod) {
	o := old.DeepCopy()
	p.Spec = o.Spec
	p.OwnerReferences = o.OwnerReferences
	if p.Status.QOSClass == "" {
		p.Status.QOSClass = o.Status.QOSClass
	}
}

// mergeMatchLabelKeys turns match and mismatch label keys of affinity terms into
// requirements on the pod's own values, as the API promises.
func mergeMatchLabelKeys(p *corev1.Pod) {
	var terms []*corev1.PodAffinityTerm
	collect := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
		for i := range required {
			terms = append(terms, &required[i])
		}
		for i := range preferred {
			terms = append(terms, &preferred[i].PodAffinityTerm)
		}
	}
	if a := p.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			collect(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if a.PodAntiAffinity != nil {
			collect(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	for _, t := range terms {
		if t.LabelSelector == nil {
			continue
		}
		require(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn, p.Labels)
		require(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn, p.Labels)
	}
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		if c.LabelSelector != nil {
			require(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn, p.Labels)
		}
	}
}

func require(s *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator, labels map[string]string) {
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: []string{value}})
		}
	}
}
