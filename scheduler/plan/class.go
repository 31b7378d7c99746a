package plan

import (
	"container/heap"
	"encoding/json"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxClasses bounds the memory for heaps of nodes.
const maxClasses = 64

// class is the order of nodes for equal pods.
type class struct {
	req   *request
	seen  int // position in the snapshot's history of changes
	score []int
	tie   []uint64
	place []int // where node i stands in heap
	heap  []int // node indexes, best first
}

// infeasible is the score of a node that cannot take the pod.
const infeasible = -1

func (c *class) Len() int { return len(c.heap) }
func (c *class) Less(i, j int) bool {
	a, b := c.heap[i], c.heap[j]
	if c.score[a] != c.score[b] {
		return c.score[a] > c.score[b]
	}
	return c.tie[a] > c.tie[b]
}
func (c *class) Swap(i, j int) {
	c.heap[i], c.heap[j] = c.heap[j], c.heap[i]
	c.place[c.heap[i]], c.place[c.heap[j]] = i, j
}
func (c *class) Push(any) { panic("the heap's size is fixed") }
func (c *class) Pop() any { panic("the heap's size is fixed") }

// simple tells whether a pod's chances on one node do not depend on others.
func (s *Snapshot) simple(pod *corev1.Pod) bool {
	if s.preferring > 0 || len(s.antiPods) > 0 || len(pod.Spec.TopologySpreadConstraints) > 0 {
		return false
	}
	a := pod.Spec.Affinity
	return a == nil || (a.PodAffinity == nil && a.PodAntiAffinity == nil &&
		(a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0))
}

// classKey is equal for pods that scheduling cannot tell apart.
func classKey(r *request) string {
	var b strings.Builder
	num := func(n int64) {
		b.WriteString(strconv.FormatInt(n, 36))
		b.WriteByte(' ')
	}
	b.WriteString(string(r.need.owner))
	b.WriteByte(' ')
	b.WriteString(r.pod.Spec.NodeName)
	b.WriteByte(' ')
	for _, v := range []int64{r.need.real.cpu, r.need.real.memory, r.need.real.disk, r.need.scored.cpu, r.need.scored.memory} {
		num(v)
	}
	for _, i := range r.images {
		b.WriteString(i)
		b.WriteByte(' ')
	}
	for i := range r.pod.Spec.Tolerations {
		t := &r.pod.Spec.Tolerations[i]
		b.WriteString(t.Key + "=" + t.Value + ":" + string(t.Operator) + ":" + string(t.Effect) + " ")
	}
	for _, p := range r.need.ports {
		b.WriteString(p.ip + "/" + string(p.protocol))
		num(int64(p.number))
	}
	if r.selects || len(r.need.real.other) > 0 {
		// Marshalling sorts maps; a failure would only make classes too fine.
		rest, err := json.Marshal([]any{r.pod.Spec.NodeSelector, r.pod.Spec.Affinity, r.need.real.other})
		if err != nil {
			return b.String() + string(r.pod.UID)
		}
		b.Write(rest)
	}
	return b.String()
}

// class returns the order of nodes for a request, brought up to date.
func (s *Snapshot) class(r *request) *class {
	key := classKey(r)
	c := s.classes[key]
	now := s.base + len(s.changes)
	if c == nil || c.seen < s.base {
		if len(s.classes) >= maxClasses {
			for k := range s.classes {
				delete(s.classes, k)
				break
			}
		}
		c = &class{req: r, seen: now, score: make([]int, len(s.nodes)), tie: make([]uint64, len(s.nodes)), place: make([]int, len(s.nodes)), heap: make([]int, len(s.nodes))}
		for i := range s.nodes {
			c.heap[i], c.place[i] = i, i
			s.rate(c, i)
		}
		heap.Init(c)
		s.classes[key] = c
		return c
	}
	for _, i := range s.changes[c.seen-s.base:] {
		s.rate(c, i)
		heap.Fix(c, c.place[i])
	}
	c.seen = now
	return c
}

func (s *Snapshot) rate(c *class, i int) {
	n := s.nodes[i]
	c.tie[i] = s.next()
	if !n.fits(c.req.need) || n.clash(c.req.need.ports) || c.req.admits(n) != "" {
		c.score[i] = infeasible
		return
	}
	c.score[i] = s.local(c.req, n)
}

// next is a step of splitmix64, the source of tie breaks.
func (s *Snapshot) next() uint64 {
	s.random += 0x9e3779b97f4a7c15
	z := s.random
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}
