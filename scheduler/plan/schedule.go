package plan

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Diagnosis says why no node takes a pod.
type Diagnosis struct {
	// Nodes is the number of nodes that were looked at.
	Nodes int
	// Reasons counts the nodes by why they were refused; a node may have several.
	Reasons map[string]int
	// Helpless counts nodes that would be refused even with no other pod on them.
	Helpless int
}

// Message is the text that Kubernetes shows in the pod's condition and event.
func (d Diagnosis) Message() string {
	if d.Nodes == 0 {
		return "no nodes available to schedule pods"
	}
	var parts []string
	for reason, n := range d.Reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	var hopes []string
	if n := d.Nodes - d.Helpless; n > 0 {
		hopes = append(hopes, fmt.Sprintf("%d No preemption victims found for incoming pod", n))
	}
	if d.Helpless > 0 {
		hopes = append(hopes, fmt.Sprintf("%d Preemption is not helpful for scheduling", d.Helpless))
	}
	return fmt.Sprintf("0/%d nodes are available: %s. preemption: 0/%d nodes are available: %s.",
		d.Nodes, strings.Join(parts, ", "), d.Nodes, strings.Join(hopes, ", "))
}

// Schedule picks the node for a pod; an empty name means none, and the
// diagnosis says why. Equal choices are decided by the seed and the decisions
// before. The snapshot is not changed: AddPod makes the decision count.
func Schedule(pod *corev1.Pod, s *Snapshot, seed uint64) (node string, d Diagnosis) {
	s.random ^= seed
	r := newRequest(pod)
	if len(s.nodes) == 0 {
		return "", Diagnosis{}
	}
	if s.simple(pod) {
		c := s.class(r)
		if best := c.heap[0]; c.score[best] != infeasible {
			return s.nodes[best].name, d
		}
	}
	return s.full(r)
}

// full looks at every node: filters, then scores of which some are relative to
// the other nodes left.
func (s *Snapshot) full(r *request) (string, Diagnosis) {
	d := Diagnosis{Nodes: len(s.nodes), Reasons: map[string]int{}}
	spread := newSpread(s, r, corev1.DoNotSchedule)
	pods := newAffinity(s, r)
	var left []*node
	for _, n := range s.nodes {
		if reason := r.admits(n); reason != "" {
			d.Reasons[reason]++
			d.Helpless++
			continue
		}
		reasons := r.takes(n)
		if len(reasons) == 0 {
			if reason, hopeless := spread.refuses(n); reason != "" {
				reasons = []string{reason}
				if hopeless {
					d.Helpless++
				}
			} else if reason := pods.refuses(n); reason != "" {
				reasons = []string{reason}
				if reason == reasonPodAffinity {
					d.Helpless++
				}
			}
		}
		for _, reason := range reasons {
			d.Reasons[reason]++
		}
		if len(reasons) == 0 {
			left = append(left, n)
		}
	}
	if len(left) == 0 {
		return "", d
	}
	best, bestScore, bestTie := "", -1<<62, uint64(0)
	scores := s.scores(r, left, pods)
	for i, n := range left {
		tie := s.next()
		if scores[i] > bestScore || (scores[i] == bestScore && tie > bestTie) {
			best, bestScore, bestTie = n.name, scores[i], tie
		}
	}
	return best, Diagnosis{}
}

func (s *Snapshot) scores(r *request, left []*node, pods *affinity) []int {
	total := make([]int, len(left))
	one := make([]int, len(left))
	add := func(weight int, reverse bool, of func(*node) int) {
		for i, n := range left {
			one[i] = of(n)
		}
		normalize(one, reverse)
		for i := range total {
			total[i] += weight * one[i]
		}
	}
	for i, n := range left {
		total[i] = s.local(r, n)
	}
	if s.preferring > 0 {
		add(weightTaint, true, func(n *node) int { return intolerable(r, n) })
	}
	if a := r.pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		if terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err == nil {
			add(weightAffinity, false, func(n *node) int { return int(terms.Score(n.obj)) })
		}
	}
	if soft := newSpread(s, r, corev1.ScheduleAnyway); len(soft.rules) > 0 {
		add(weightSpread, true, soft.crowd)
	}
	if pods.prefers() {
		lowest := 0
		for _, n := range left {
			lowest = min(lowest, pods.score(n))
		}
		add(weightPods, false, func(n *node) int { return pods.score(n) - lowest })
	}
	return total
}
