package scheduler

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
)

func key(pod *corev1.Pod) client.Key {
	return client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name}
}

// bind writes a decision.
func (s *Scheduler) bind(ctx context.Context, w *waiting, node string) {
	pod := w.pod
	_, err := s.Client.Create(ctx, key(pod).Sub("binding"), &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	})
	if err == nil {
		s.Recorder.Event(pod, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node))
		return
	}
	if ctx.Err() != nil {
		return
	}
	s.post(func() { s.unbound(ctx, w, node, err) })
}

// unbound takes a pod whose binding failed back into the queue, unless it is
// gone or somebody else has bound it.
func (s *Scheduler) unbound(ctx context.Context, w *waiting, node string, err error) {
	uid := w.pod.UID
	if s.assumed[uid] != w {
		return
	}
	delete(s.assumed, uid)
	s.snapshot.RemovePod(uid)
	now, ok := client.Cached[*corev1.Pod](s.Client.Cache(client.Pods, ""), w.pod.Namespace, w.pod.Name)
	if apierrors.IsNotFound(err) && !ok {
		return
	}
	if !ok || now.UID != uid || now.DeletionTimestamp != nil || finished(now) {
		return
	}
	if now.Spec.NodeName != "" {
		s.snapshot.AddPod(now, now.Spec.NodeName)
		return
	}
	w.pod, w.ready = now, s.Clock.Now().Add(backoff(w.tries))
	s.queue.all[uid] = w
	s.tell(ctx, w, "SchedulerError", fmt.Sprintf("binding to node %s failed: %v", node, err))
}

// tell reports to the pod's owner why it has no node.
func (s *Scheduler) tell(ctx context.Context, w *waiting, reason, message string) {
	s.Recorder.Event(w.pod, corev1.EventTypeWarning, "FailedScheduling", message)
	s.condition(ctx, w, reason, message)
}

// gate shows that a pod waits for its scheduling gates.
func (s *Scheduler) gate(w *waiting) {
	s.condition(s.ctx, w, corev1.PodReasonSchedulingGated, "Scheduling is blocked due to non-empty scheduling gates")
}

// condition writes why a pod is not scheduled, once for each message.
func (s *Scheduler) condition(ctx context.Context, w *waiting, reason, message string) {
	pod := w.pod
	if c := scheduled(pod); (c != nil && c.Status == corev1.ConditionFalse && c.Reason == reason && c.Message == message) || w.told == message {
		return
	}
	w.told = message
	c := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message,
		LastTransitionTime: metav1.NewTime(s.Clock.Now()), ObservedGeneration: pod.Generation}
	if old := scheduled(pod); old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	s.write(ctx, func() {
		// The resource version makes a pod that was bound meanwhile refuse this.
		data, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": pod.UID, "resourceVersion": pod.ResourceVersion},
			"status":   map[string]any{"conditions": []corev1.PodCondition{c}},
		})
		if err == nil {
			_, err = s.Client.Patch(ctx, key(pod).Sub("status"), client.Patch{Type: types.StrategicMergePatchType, Data: data})
		}
		if err != nil && ctx.Err() == nil {
			s.Log.Debug("condition not written", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			s.post(func() { w.told = "" })
		}
	})
}

func scheduled(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodScheduled {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}
