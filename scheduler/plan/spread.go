package plan

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// spread holds a pod's topology spread constraints of one kind, with the
// matching pods counted in each domain.
type spread struct {
	rules []spreadRule
}

type spreadRule struct {
	key   string
	skew  int
	self  int // 1 if the pod matches its own selector
	count map[string]int
	least int
}

func newSpread(s *Snapshot, r *request, when corev1.UnsatisfiableConstraintAction) *spread {
	out := &spread{}
	for i := range r.pod.Spec.TopologySpreadConstraints {
		if c := &r.pod.Spec.TopologySpreadConstraints[i]; c.WhenUnsatisfiable == when {
			out.rules = append(out.rules, s.spreadRule(r, c))
		}
	}
	return out
}

func (s *Snapshot) spreadRule(r *request, c *corev1.TopologySpreadConstraint) spreadRule {
	sel := selectorWith(c.LabelSelector, c.MatchLabelKeys, r.pod.Labels)
	rule := spreadRule{key: c.TopologyKey, skew: int(c.MaxSkew), count: map[string]int{}}
	if sel.Matches(labels.Set(r.pod.Labels)) {
		rule.self = 1
	}
	for _, n := range s.nodes {
		domain, ok := n.obj.Labels[c.TopologyKey]
		if !ok || !r.inSpread(c, n) {
			continue
		}
		rule.count[domain] += 0
		for _, p := range n.pods {
			if p.pod.Namespace == r.pod.Namespace && p.pod.DeletionTimestamp == nil && sel.Matches(labels.Set(p.pod.Labels)) {
				rule.count[domain]++
			}
		}
	}
	first := true
	for _, n := range rule.count {
		if first || n < rule.least {
			rule.least, first = n, false
		}
	}
	if c.MinDomains != nil && len(rule.count) < int(*c.MinDomains) {
		rule.least = 0
	}
	return rule
}

// inSpread tells whether a node counts as part of a constraint's domains.
func (r *request) inSpread(c *corev1.TopologySpreadConstraint, n *node) bool {
	if c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor {
		if ok, err := r.required.Match(n.obj); err != nil || !ok {
			return false
		}
	}
	if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
		for i := range n.obj.Spec.Taints {
			if t := &n.obj.Spec.Taints[i]; t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(r.pod.Spec.Tolerations, t) {
				return false
			}
		}
	}
	return true
}

// refuses checks the constraints for a node; hopeless means that no preemption helps.
func (sp *spread) refuses(n *node) (reason string, hopeless bool) {
	for i := range sp.rules {
		rule := &sp.rules[i]
		domain, ok := n.obj.Labels[rule.key]
		if !ok {
			return reasonSpreadLabel, true
		}
		if rule.count[domain]+rule.self-rule.least > rule.skew {
			return reasonSpread, false
		}
	}
	return "", false
}

// crowd is how many matching pods stand in the node's domains.
func (sp *spread) crowd(n *node) (sum int) {
	for i := range sp.rules {
		sum += sp.rules[i].count[n.obj.Labels[sp.rules[i].key]]
	}
	return sum
}

// selectorWith narrows a selector by the pod's own values of some label keys.
func selectorWith(ls *metav1.LabelSelector, keys []string, own map[string]string) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(ls)
	if err != nil {
		return labels.Nothing()
	}
	for _, k := range keys {
		if v, ok := own[k]; ok {
			if req, err := labels.NewRequirement(k, "=", []string{v}); err == nil {
				sel = sel.Add(*req)
			}
		}
	}
	return sel
}
