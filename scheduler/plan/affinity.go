package plan

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// term is an affinity term between pods, with its selectors parsed.
type term struct {
	key        string
	pods       labels.Selector
	namespaces []string
	byLabel    labels.Selector // of namespaces; nil: none
	weight     int
	found      map[string]bool // domains with a matching pod
	any        bool            // a matching pod exists anywhere
}

func newTerm(t *corev1.PodAffinityTerm, owner *corev1.Pod, weight int) *term {
	out := &term{key: t.TopologyKey, pods: selectorWith(t.LabelSelector, t.MatchLabelKeys, owner.Labels), namespaces: t.Namespaces, weight: weight, found: map[string]bool{}}
	if t.NamespaceSelector != nil {
		sel, err := metav1.LabelSelectorAsSelector(t.NamespaceSelector)
		if err != nil {
			sel = labels.Nothing()
		}
		out.byLabel = sel
	} else if len(t.Namespaces) == 0 {
		out.namespaces = []string{owner.Namespace}
	}
	return out
}

func (s *Snapshot) matches(t *term, pod *corev1.Pod) bool {
	if !slices.Contains(t.namespaces, pod.Namespace) && (t.byLabel == nil || !t.byLabel.Matches(s.namespaces[pod.Namespace])) {
		return false
	}
	return t.pods.Matches(labels.Set(pod.Labels))
}

// domain is a value of a topology key.
type domain struct{ key, value string }

// affinity holds what pods demand and prefer of each other, for one pod.
type affinity struct {
	near, apart []*term
	forbidden   map[domain]bool // by pods that exist
	liked       map[domain]int
	alone       bool // the pod matches its own affinity, and no other does: it may be the first
}

func newAffinity(s *Snapshot, r *request) *affinity {
	out := &affinity{forbidden: map[domain]bool{}, liked: map[domain]int{}}
	var soft []*term
	if a := r.pod.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			for i := range a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
				out.near = append(out.near, newTerm(&a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[i], r.pod, 0))
			}
			for _, w := range a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
				soft = append(soft, newTerm(&w.PodAffinityTerm, r.pod, int(w.Weight)))
			}
		}
		if a.PodAntiAffinity != nil {
			for i := range a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
				out.apart = append(out.apart, newTerm(&a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[i], r.pod, 0))
			}
			for _, w := range a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
				soft = append(soft, newTerm(&w.PodAffinityTerm, r.pod, -int(w.Weight)))
			}
		}
	}
	for _, p := range s.antiPods {
		s.existing(out, p, r.pod)
	}
	if len(out.near)+len(out.apart)+len(soft) == 0 {
		return out
	}
	for _, n := range s.nodes {
		for _, p := range n.pods {
			all := len(out.near) > 0
			for _, t := range out.near {
				all = all && s.matches(t, p.pod)
			}
			if all {
				for _, t := range out.near {
					t.mark(n)
				}
			}
			for _, t := range out.apart {
				if s.matches(t, p.pod) {
					t.mark(n)
				}
			}
			for _, t := range soft {
				if v, ok := n.obj.Labels[t.key]; ok && s.matches(t, p.pod) {
					out.liked[domain{t.key, v}] += t.weight
				}
			}
		}
	}
	out.alone = len(out.near) > 0
	for _, t := range out.near {
		out.alone = out.alone && !t.any && s.matches(t, r.pod)
	}
	return out
}

// existing adds the domains in which a pod that exists tolerates no pod like ours.
func (s *Snapshot) existing(out *affinity, p *placed, pod *corev1.Pod) {
	i, ok := s.index[p.node]
	if !ok {
		return
	}
	terms := p.pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	for j := range terms {
		t := newTerm(&terms[j], p.pod, 0)
		if v, ok := s.nodes[i].obj.Labels[t.key]; ok && s.matches(t, pod) {
			out.forbidden[domain{t.key, v}] = true
		}
	}
}

func (t *term) mark(n *node) {
	if v, ok := n.obj.Labels[t.key]; ok {
		t.found[v], t.any = true, true
	}
}

// refuses checks the required terms for a node.
func (a *affinity) refuses(n *node) string {
	for _, t := range a.near {
		v, ok := n.obj.Labels[t.key]
		if !ok || (!t.found[v] && !a.alone) {
			return reasonPodAffinity
		}
	}
	for _, t := range a.apart {
		if v, ok := n.obj.Labels[t.key]; ok && t.found[v] {
			return reasonAntiAffinity
		}
	}
	for d := range a.forbidden {
		if n.obj.Labels[d.key] == d.value {
			return reasonExistingAnti
		}
	}
	return ""
}

func (a *affinity) prefers() bool { return len(a.liked) > 0 }

func (a *affinity) score(n *node) (sum int) {
	for d, w := range a.liked {
		if n.obj.Labels[d.key] == d.value {
			sum += w
		}
	}
	return sum
}
