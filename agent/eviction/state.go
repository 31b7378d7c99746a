package eviction

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Amount is what is left of something, and all of it.
type Amount struct{ Available, Capacity int64 }

// Observation is what the node has left, by signal; what could not be read is absent.
type Observation map[Signal]Amount

// Short is a crossed threshold that calls for action.
type Short struct {
	Signal    Signal
	Threshold resource.Quantity
	Available resource.Quantity
	// Grace bounds the grace period of the pod that goes: nil for its own, one second
	// for a hard threshold.
	Grace *int64
	// Hard threshold, not a soft one.
	Hard bool
}

// State remembers since when thresholds have been crossed. The zero value has seen
// nothing.
type State struct {
	met  map[key]time.Time                      // thresholds that are crossed, since when
	seen map[corev1.NodeConditionType]time.Time // when a condition's cause was last there
}

type key struct {
	signal Signal
	hard   bool
}

// Next takes an observation in. It returns the state after it, the conditions that
// the node has, and what it is so short of that something must go, the most pressing
// first; nil is enough of everything.
func (s State) Next(c *Config, o Observation, now time.Time) (State, map[corev1.NodeConditionType]bool, *Short) {
	next := State{met: map[key]time.Time{}, seen: maps.Clone(s.seen)}
	if next.seen == nil {
		next.seen = map[corev1.NodeConditionType]time.Time{}
	}
	var act *Short
	for _, hard := range []bool{true, false} {
		thresholds := c.Soft
		if hard {
			thresholds = c.Hard
		}
		for _, sig := range signals {
			limit, wanted := thresholds[sig]
			have, read := o[sig]
			if !wanted || !read {
				continue
			}
			at := limit.Of(have.Capacity)
			since, was := s.met[key{sig, hard}]
			// Once crossed, more than the threshold must come back.
			need := at
			if r, ok := c.Reclaim[sig]; ok && was {
				need += r.Of(have.Capacity)
			}
			if have.Available >= need {
				continue
			}
			if !was {
				since = now
			}
			next.met[key{sig, hard}] = since
			next.seen[sig.Condition()] = now
			if !hard && now.Sub(since) < c.Grace[sig] {
				continue
			}
			if act == nil || rank(sig) < rank(act.Signal) {
				act = &Short{Signal: sig, Threshold: quantity(sig, at), Available: quantity(sig, have.Available), Hard: hard}
				grace := int64(c.MaxPodGrace / time.Second)
				if hard {
					grace = 1
				}
				act.Grace = &grace
			}
		}
	}
	conditions := map[corev1.NodeConditionType]bool{}
	for kind, at := range next.seen {
		if now.Sub(at) < c.Transition || at.Equal(now) {
			conditions[kind] = true
		} else {
			delete(next.seen, kind)
		}
	}
	return next, conditions, act
}

func rank(s Signal) int {
	for i, o := range signals {
		if o == s {
			return i
		}
	}
	return len(signals)
}

func quantity(s Signal, n int64) resource.Quantity {
	if s.Resource() == "inodes" || s.Resource() == "pids" {
		return *resource.NewQuantity(n, resource.DecimalSI)
	}
	return *resource.NewQuantity(n, resource.BinarySI)
}
