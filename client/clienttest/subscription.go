package clienttest

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/client"
)

// subscription delivers events to one subscriber in order.
type subscription struct {
	match func(client.Object) bool
	fn    func(client.Event)

	mu      sync.Mutex
	cond    *sync.Cond
	queue   []client.Event
	stopped bool
}

// push queues an event as the subscriber's filter sees it: an object that
// starts or stops matching is added or deleted for this subscriber.
func (s *subscription) push(ev client.Event) {
	now := ev.Type != client.Deleted && s.match(ev.Object)
	before := ev.Old != nil && s.match(ev.Old)
	switch {
	case now && before:
		ev.Type = client.Modified
	case now:
		ev.Type, ev.Old = client.Added, nil
	case before:
		ev.Type = client.Deleted
	default:
		return
	}
	s.mu.Lock()
	s.queue = append(s.queue, ev)
	s.cond.Signal()
	s.mu.Unlock()
}

func (s *subscription) run() {
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.stopped {
			s.cond.Wait()
		}
		if s.stopped {
			s.mu.Unlock()
			return
		}
		ev := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		s.fn(ev)
	}
}

func (s *subscription) stop() {
	s.mu.Lock()
	s.stopped = true
	s.cond.Signal()
	s.mu.Unlock()
}

func matcher(selector string) func(client.Object) bool {
	sel, err := fields.ParseSelector(selector)
	if err != nil {
		sel = fields.Nothing()
	}
	return func(o client.Object) bool {
		set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
		if pod, ok := o.(*corev1.Pod); ok {
			set["spec.nodeName"] = pod.Spec.NodeName
		}
		return sel.Matches(set)
	}
}
