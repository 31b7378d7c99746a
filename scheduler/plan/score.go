package plan

import (
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Weights of the scores, as in Kubernetes' default profile. Each score is 0 to 100.
const (
	weightTaint    = 3
	weightAffinity = 2
	weightSpread   = 2
	weightPods     = 2
	maxScore       = 100
)

// local is the part of a score that depends on this node alone: room left,
// balance of CPU and memory, images present, and few pods of the same controller.
func (s *Snapshot) local(r *request, n *node) int {
	return least(r, n) + balanced(r, n) + s.imageScore(r, n) + weightSpread*spreadScore(r, n)
}

func least(r *request, n *node) int {
	share := func(have, used int64) int64 {
		if have == 0 || used > have {
			return 0
		}
		return (have - used) * maxScore / have
	}
	return int(share(n.allocatable.cpu, n.assumed.cpu+r.need.scored.cpu)+share(n.allocatable.memory, n.assumed.memory+r.need.scored.memory)) / 2
}

func balanced(r *request, n *node) int {
	if n.allocatable.cpu == 0 || n.allocatable.memory == 0 {
		return 0
	}
	cpu := min(1, float64(n.used.cpu+r.need.real.cpu)/float64(n.allocatable.cpu))
	memory := min(1, float64(n.used.memory+r.need.real.memory)/float64(n.allocatable.memory))
	return int((1 - math.Abs(cpu-memory)/2) * maxScore)
}

// Image sizes between these make the score rise from 0 to 100.
const (
	smallImage = 23 << 20
	largeImage = 1000 << 20
)

func (s *Snapshot) imageScore(r *request, n *node) int {
	if len(n.images) == 0 {
		return 0
	}
	var sum int64
	for _, name := range r.images {
		if size, ok := n.images[name]; ok {
			// An image that few nodes have must not gather all pods there.
			sum += int64(float64(size) * float64(s.imageNodes[name]) / float64(len(s.nodes)))
		}
	}
	most := int64(largeImage) * int64(len(r.images))
	sum = min(max(sum, smallImage), most)
	return int(maxScore * (sum - smallImage) / (most - smallImage))
}

func normalImage(name string) string {
	if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		name += ":latest"
	}
	return name
}

func spreadScore(r *request, n *node) int {
	if r.need.owner == "" {
		return 0
	}
	return maxScore / (1 + n.owners[r.need.owner])
}

// intolerable counts the soft taints that a pod does not tolerate.
func intolerable(r *request, n *node) (count int) {
	for i := range n.obj.Spec.Taints {
		if t := &n.obj.Spec.Taints[i]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(r.pod.Spec.Tolerations, t) {
			count++
		}
	}
	return count
}

// normalize scales scores to 0..100 by the highest; reversed, the highest gets 0.
func normalize(scores []int, reverse bool) {
	highest := 0
	for _, v := range scores {
		highest = max(highest, v)
	}
	for i, v := range scores {
		switch {
		case highest == 0 && reverse:
			scores[i] = maxScore
		case highest == 0:
			scores[i] = 0
		case reverse:
			scores[i] = maxScore - v*maxScore/highest
		default:
			scores[i] = v * maxScore / highest
		}
	}
}
