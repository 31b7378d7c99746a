// Package shutdown plans how a node's pods end before the machine does: those that
// matter less first, each group within a time of its own. It is pure.
// https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown.
package shutdown

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// critical is the priority from which pods are critical: that of the class
// system-cluster-critical.
const critical = 2000000000

// Period is how long pods have whose priority is Priority or higher, up to that of
// the next period.
type Period struct {
	Priority int32
	Grace    time.Duration
}

// Periods are those of a node with a total time, of which the critical pods have the
// last part.
func Periods(total, forCritical time.Duration) []Period {
	if total <= 0 {
		return nil
	}
	return []Period{{Priority: 0, Grace: total - forCritical}, {Priority: critical, Grace: forCritical}}
}

// Validate finds what cannot be meant.
func Validate(periods []Period) error {
	seen := map[int32]bool{}
	for _, p := range periods {
		if p.Grace < 0 {
			return fmt.Errorf("the time of priority %d must not be negative", p.Priority)
		}
		if seen[p.Priority] {
			return fmt.Errorf("priority %d is there twice", p.Priority)
		}
		seen[p.Priority] = true
	}
	return nil
}

// Total is how long a shutdown takes at most.
func Total(periods []Period) (sum time.Duration) {
	for _, p := range periods {
		sum += p.Grace
	}
	return sum
}

// Group are pods that end at the same time.
type Group struct {
	Period
	Pods []*corev1.Pod
}

// Groups divides pods among the periods, in the order in which they are to end. A pod
// below the lowest priority belongs to that.
func Groups(periods []Period, pods []*corev1.Pod) []Group {
	sorted := slices.SortedFunc(slices.Values(periods), func(a, b Period) int { return cmp.Compare(a.Priority, b.Priority) })
	var out []Group
	for _, p := range sorted {
		out = append(out, Group{Period: p})
	}
	for _, pod := range pods {
		var priority int32
		if pod.Spec.Priority != nil {
			priority = *pod.Spec.Priority
		}
		i := len(out) - 1
		for i > 0 && out[i].Priority > priority {
			i--
		}
		if i >= 0 {
			out[i].Pods = append(out[i].Pods, pod)
		}
	}
	return slices.DeleteFunc(out, func(g Group) bool { return len(g.Pods) == 0 })
}
