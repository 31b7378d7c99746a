package scheduler

import (
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/client"
)

func (s *Scheduler) onNode(ev client.Event) {
	node := ev.Object.(*corev1.Node)
	if ev.Type == client.Deleted {
		s.snapshot.RemoveNode(node.Name)
		return
	}
	old := s.snapshot.Node(node.Name)
	if old != nil && check.Same(old.Status.Images, node.Status.Images) && sameNode(old, node) {
		return // a heartbeat
	}
	s.snapshot.SetNode(node)
	if old == nil || !sameNode(old, node) {
		s.queue.wake(s.Clock.Now())
	}
}

// sameNode tells whether two states of a node take the same pods.
func sameNode(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable == b.Spec.Unschedulable && check.Same(a.Spec.Taints, b.Spec.Taints) &&
		check.Same(a.Labels, b.Labels) && check.Same(a.Status.Allocatable, b.Status.Allocatable)
}

func (s *Scheduler) onNamespace(ev client.Event) {
	if ev.Type == client.Deleted {
		s.snapshot.RemoveNamespace(ev.Object.GetName())
		return
	}
	s.snapshot.SetNamespace(ev.Object.GetName(), ev.Object.GetLabels())
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func (s *Scheduler) onPod(ev client.Event) {
	pod := ev.Object.(*corev1.Pod)
	switch {
	case ev.Type == client.Deleted || finished(pod):
		s.queue.remove(pod.UID)
		delete(s.assumed, pod.UID)
		if s.snapshot.NodeOf(pod.UID) != "" {
			s.snapshot.RemovePod(pod.UID)
			s.queue.wake(s.Clock.Now())
		}
	case pod.Spec.NodeName != "":
		s.queue.remove(pod.UID)
		delete(s.assumed, pod.UID)
		had := s.snapshot.NodeOf(pod.UID)
		s.snapshot.AddPod(pod, pod.Spec.NodeName)
		// A new or relabelled pod can satisfy another's affinity.
		if had == "" || (ev.Old != nil && !check.Same(ev.Old.GetLabels(), pod.Labels)) {
			s.queue.wake(s.Clock.Now())
		}
	case pod.Spec.SchedulerName != s.Name && (pod.Spec.SchedulerName != "" || s.Name != corev1.DefaultSchedulerName):
	case pod.DeletionTimestamp != nil:
		s.queue.remove(pod.UID)
	case s.assumed[pod.UID] != nil: // our binding is on its way
	default:
		s.enqueue(ev, pod)
	}
}

func (s *Scheduler) enqueue(ev client.Event, pod *corev1.Pod) {
	known := s.queue.all[pod.UID] != nil
	w := s.queue.set(pod)
	old, _ := ev.Old.(*corev1.Pod)
	changed := old == nil || !check.Same(old.Spec, pod.Spec) || !check.Same(old.Labels, pod.Labels)
	switch {
	case gated(pod):
		s.gate(w)
	case known && !changed: // its status only
	default:
		s.queue.activate(w)
	}
}
