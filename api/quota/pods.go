package quota

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"knarr.dev/knarr/api/core"
)

// bare are the requests that quotas know under their own name as well as under
// requests.NAME.
var bare = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}

// podUsage: a pod that has ended takes its place among the objects and nothing else.
func podUsage(used corev1.ResourceList, p *corev1.Pod) {
	if Ended(p) {
		return
	}
	used[corev1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
	opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	for n, q := range resourcehelper.PodRequests(p, opts) {
		switch {
		case slices.Contains(bare, n):
			used[n], used["requests."+n] = q, q
		case strings.HasPrefix(string(n), corev1.ResourceHugePagesPrefix):
			used[n], used["requests."+n] = q, q
		case extended(n):
			used["requests."+n] = q
		}
	}
	for n, q := range resourcehelper.PodLimits(p, opts) {
		if slices.Contains(bare, n) {
			used["limits."+n] = q
		}
	}
}

func extended(n corev1.ResourceName) bool {
	return strings.Contains(string(n), "/") && !strings.Contains(string(n), "kubernetes.io/")
}

// Ended tells whether a pod's processes have ended for good, or should have by now.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Missing names what the quota limits and a container of the pod does not
// state, with the containers' names: a quota of CPU can only hold where every
// container says what it needs.
func Missing(p *corev1.Pod, hard corev1.ResourceList) map[corev1.ResourceName][]string {
	out := map[corev1.ResourceName][]string{}
	look := func(containers []corev1.Container) {
		for _, c := range containers {
			for n := range hard {
				if !states(c.Resources, n) && !podStates(p, n) {
					out[n] = append(out[n], c.Name)
				}
			}
		}
	}
	look(p.Spec.Containers)
	look(p.Spec.InitContainers)
	return out
}

func podStates(p *corev1.Pod, n corev1.ResourceName) bool {
	return p.Spec.Resources != nil && states(*p.Spec.Resources, n)
}

func states(r corev1.ResourceRequirements, n corev1.ResourceName) bool {
	list := r.Requests
	name, isLimit := strings.CutPrefix(string(n), "limits.")
	if isLimit {
		list = r.Limits
	}
	name = strings.TrimPrefix(name, "requests.")
	if !slices.Contains(bare, corev1.ResourceName(name)) {
		return true // only these must be stated
	}
	_, ok := list[corev1.ResourceName(name)]
	return ok
}

// Falls tells whether a quota's scopes take the object in.
func Falls(q *corev1.ResourceQuota, obj any) bool {
	for _, s := range q.Spec.Scopes {
		if !inScope(corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists}, obj) {
			return false
		}
	}
	if q.Spec.ScopeSelector != nil {
		for _, r := range q.Spec.ScopeSelector.MatchExpressions {
			if !inScope(r, obj) {
				return false
			}
		}
	}
	return true
}

func inScope(r corev1.ScopedResourceSelectorRequirement, obj any) bool {
	if c, ok := obj.(*corev1.PersistentVolumeClaim); ok {
		if r.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass {
			return false
		}
		return chosen(r, claimClass(c))
	}
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return false // scopes speak of pods and claims alone
	}
	switch r.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return p.Spec.ActiveDeadlineSeconds != nil
	case corev1.ResourceQuotaScopeNotTerminating:
		return p.Spec.ActiveDeadlineSeconds == nil
	case corev1.ResourceQuotaScopeBestEffort:
		return core.QOSClass(p) == corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeNotBestEffort:
		return core.QOSClass(p) != corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopePriorityClass:
		return chosen(r, p.Spec.PriorityClassName)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossesNamespaces(p)
	}
	return false
}

func claimClass(c *corev1.PersistentVolumeClaim) string {
	if c.Spec.VolumeAttributesClassName != nil {
		return *c.Spec.VolumeAttributesClassName
	}
	return ""
}

func chosen(r corev1.ScopedResourceSelectorRequirement, class string) bool {
	switch r.Operator {
	case corev1.ScopeSelectorOpExists:
		return class != ""
	case corev1.ScopeSelectorOpDoesNotExist:
		return class == ""
	case corev1.ScopeSelectorOpIn:
		return slices.Contains(r.Values, class)
	case corev1.ScopeSelectorOpNotIn:
		return !slices.Contains(r.Values, class)
	}
	return false
}

// crossesNamespaces: an affinity term that names or selects namespaces.
func crossesNamespaces(p *corev1.Pod) bool {
	a := p.Spec.Affinity
	if a == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	add := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
		terms = append(terms, required...)
		for _, w := range preferred {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	if x := a.PodAffinity; x != nil {
		add(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if x := a.PodAntiAffinity; x != nil {
		add(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil })
}
