package scheduler

import (
	"cmp"
	"container/heap"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// waiting is a pod that has no node yet.
type waiting struct {
	pod   *corev1.Pod
	tries int
	// ready is when the back-off after the last try ends.
	ready time.Time
	// failed: the last try found no node; only an event makes it worth another.
	failed bool
	at     int // index in the active heap; -1: not in it
	told   string
}

// Back-off of a pod that failed.
const (
	firstBackoff = time.Second
	lastBackoff  = 10 * time.Second
)

func backoff(tries int) time.Duration {
	d := firstBackoff
	for range tries - 1 {
		if d *= 2; d >= lastBackoff {
			return lastBackoff
		}
	}
	return d
}

// active orders the pods to be tried: by priority, then by age.
type active []*waiting

func (a active) Len() int { return len(a) }
func (a active) Less(i, j int) bool {
	x, y := a[i].pod, a[j].pod
	return cmp.Or(cmp.Compare(priority(y), priority(x)),
		x.CreationTimestamp.Compare(y.CreationTimestamp.Time),
		cmp.Compare(x.Name, y.Name)) < 0
}
func (a active) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].at, a[j].at = i, j
}
func (a *active) Push(x any) {
	w := x.(*waiting)
	w.at = len(*a)
	*a = append(*a, w)
}
func (a *active) Pop() any {
	old := *a
	w := old[len(old)-1]
	w.at = -1
	*a = old[:len(old)-1]
	return w
}

func priority(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// queue holds all waiting pods. It is not safe for use by several goroutines.
type queue struct {
	all    map[types.UID]*waiting
	active active
}

func newQueue() *queue { return &queue{all: map[types.UID]*waiting{}} }

// set adds or refreshes a pod and makes it active unless it backs off.
func (q *queue) set(pod *corev1.Pod) *waiting {
	w := q.all[pod.UID]
	if w == nil {
		w = &waiting{at: -1}
		q.all[pod.UID] = w
	}
	w.pod = pod
	return w
}

func (q *queue) activate(w *waiting) {
	w.failed = false
	if w.at < 0 {
		heap.Push(&q.active, w)
	} else {
		heap.Fix(&q.active, w.at)
	}
}

func (q *queue) remove(uid types.UID) {
	w := q.all[uid]
	if w == nil {
		return
	}
	delete(q.all, uid)
	if w.at >= 0 {
		heap.Remove(&q.active, w.at)
	}
}

func (q *queue) pop() *waiting {
	if len(q.active) == 0 {
		return nil
	}
	return heap.Pop(&q.active).(*waiting)
}

// wake makes the pods that failed worth another try, once their back-off ends;
// it returns the earliest such end that is still to come.
func (q *queue) wake(now time.Time) {
	for _, w := range q.all {
		if w.failed {
			w.failed = false
		}
	}
	q.release(now)
}

// release activates the pods whose back-off has ended and returns how long until
// the next one's does; 0: none backs off.
func (q *queue) release(now time.Time) (next time.Duration) {
	for _, w := range q.all {
		if w.failed || w.at >= 0 || w.tries == 0 || gated(w.pod) {
			continue
		}
		if wait := w.ready.Sub(now); wait <= 0 {
			q.activate(w)
		} else if next == 0 || wait < next {
			next = wait
		}
	}
	return next
}

func gated(pod *corev1.Pod) bool { return len(pod.Spec.SchedulingGates) > 0 }
