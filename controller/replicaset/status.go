package replicaset

import (
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/controller/engine"
)

// failure is what a failed creation or deletion leaves in the conditions.
type failure struct{ reason, message string }

// status is what a replica set and a replication controller have in common.
type status struct {
	replicas, fullyLabeled, ready, available, terminating int32
	// soonest is when the next ready pod becomes available; 0: none waits.
	soonest time.Duration
}

// count computes the status numbers from the active and terminating pods.
func count(active []*corev1.Pod, terminating int, template labels.Set, minReady int32, now time.Time) status {
	s := status{replicas: int32(len(active)), terminating: int32(terminating)}
	want := labels.SelectorFromValidatedSet(template)
	for _, p := range active {
		if want.Matches(labels.Set(p.Labels)) {
			s.fullyLabeled++
		}
		if !engine.Ready(p) {
			continue
		}
		s.ready++
		ok, wait := engine.Available(p, minReady, now)
		if ok {
			s.available++
		} else if wait > 0 && (s.soonest == 0 || wait < s.soonest) {
			s.soonest = wait
		}
	}
	return s
}

// condition is the common form of the two kinds' conditions.
type condition struct {
	reason, message string
	at              metav1.Time
}

// failureCondition carries the ReplicaFailure condition over: it appears with
// the first failure, keeps its time, and goes with the first success.
func failureCondition(old *condition, f *failure, now time.Time) *condition {
	switch {
	case f == nil:
		return nil
	case old != nil:
		return old
	}
	return &condition{f.reason, f.message, metav1.NewTime(now)}
}

func same[T any](a, b T) bool { return reflect.DeepEqual(a, b) }
