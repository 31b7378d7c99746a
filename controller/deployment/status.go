package deployment

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
)

// The reasons of the Progressing condition.
const (
	reasonAvailable = "NewReplicaSetAvailable"
	reasonUpdated   = "ReplicaSetUpdated"
	reasonTimedOut  = "ProgressDeadlineExceeded"
	reasonPaused    = "DeploymentPaused"
	reasonResumed   = "DeploymentResumed"
)

func (r *rollout) hasDeadline() bool {
	s := r.d.Spec.ProgressDeadlineSeconds
	return s != nil && *s != math.MaxInt32
}

func find(s appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func without(cs []appsv1.DeploymentCondition, t appsv1.DeploymentConditionType) []appsv1.DeploymentCondition {
	return slices.DeleteFunc(slices.Clone(cs), func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// setCondition changes a condition unless status and reason stay the same; its
// transition time moves only with the status.
func (r *rollout) setCondition(t appsv1.DeploymentConditionType, s corev1.ConditionStatus, reason, message string) {
	if old := find(r.d.Status, t); old == nil || old.Status != s || old.Reason != reason {
		r.replaceCondition(t, s, reason, message)
	}
}

func (r *rollout) replaceCondition(t appsv1.DeploymentConditionType, s corev1.ConditionStatus, reason, message string) {
	now := metav1.NewTime(r.now)
	c := appsv1.DeploymentCondition{Type: t, Status: s, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now}
	if old := find(r.d.Status, t); old != nil && old.Status == s {
		c.LastTransitionTime = old.LastTransitionTime
	}
	r.d.Status.Conditions = append(without(r.d.Status.Conditions, t), c)
}

// complete tells whether every replica is new and available.
func complete(d *appsv1.Deployment, s appsv1.DeploymentStatus) bool {
	n := wanted(d)
	return s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n && s.ObservedGeneration >= d.Generation
}

// progressing tells whether anything got better from one status to the next.
func progressing(was, is appsv1.DeploymentStatus) bool {
	return is.UpdatedReplicas > was.UpdatedReplicas || is.Replicas-is.UpdatedReplicas < was.Replicas-was.UpdatedReplicas ||
		is.ReadyReplicas > was.ReadyReplicas || is.AvailableReplicas > was.AvailableReplicas
}

// count fills the numbers and the Available condition of r.d.Status.
func (r *rollout) count() {
	s := &r.d.Status
	s.ObservedGeneration = r.d.Generation
	s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0, 0
	var terminating int32
	known := true
	for _, rs := range r.all() {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if rs.Status.TerminatingReplicas != nil {
			terminating += *rs.Status.TerminatingReplicas
		} else {
			known = false
		}
	}
	s.TerminatingReplicas = nil
	if known {
		s.TerminatingReplicas = &terminating
	}
	if r.fresh != nil {
		s.UpdatedReplicas = r.fresh.Status.Replicas
	}
	// Kubernetes counts against the pods that should exist.
	s.UnavailableReplicas = max(0, specSum(r.all())-s.AvailableReplicas)
	_, unavailable := bounds(r.d)
	if s.AvailableReplicas >= wanted(r.d)-unavailable {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
}

// writeStatus stores the numbers without judging progress.
func (r *rollout) writeStatus(ctx context.Context) error {
	r.count()
	return r.putStatus(ctx, r.d.Status)
}

// progress stores the status of a rollout under way and judges its progress.
func (r *rollout) progress(ctx context.Context) error {
	before := r.d.Status.DeepCopy()
	r.count()
	s := &r.d.Status
	name := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.fresh != nil {
		name = fmt.Sprintf("ReplicaSet %q", r.fresh.Name)
	}
	if !r.hasDeadline() {
		s.Conditions = without(s.Conditions, appsv1.DeploymentProgressing)
	}
	cur := find(*before, appsv1.DeploymentProgressing)
	done := s.Replicas == s.UpdatedReplicas && cur != nil && cur.Reason == reasonAvailable
	if r.hasDeadline() && !done {
		switch {
		case complete(r.d, *s):
			r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonAvailable, name+" has successfully progressed.")
		case progressing(*before, *s):
			r.replaceCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonUpdated, name+" is progressing.")
		case r.timedOut(cur):
			r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonTimedOut, name+" has timed out progressing.")
		}
	}
	s.Conditions = without(s.Conditions, appsv1.DeploymentReplicaFailure)
	if c := r.setFailure(); c != nil {
		if old := find(*before, appsv1.DeploymentReplicaFailure); old != nil && old.Status == c.Status && old.Reason == c.Reason {
			c = old
		}
		s.Conditions = append(s.Conditions, *c)
	}
	if err := r.putStatus(ctx, *s); err != nil {
		return err
	}
	r.deadline = r.untilDeadline()
	return nil
}

func (r *rollout) deadlineAt(c *appsv1.DeploymentCondition) time.Time {
	return c.LastUpdateTime.Add(time.Duration(*r.d.Spec.ProgressDeadlineSeconds) * time.Second)
}

func (r *rollout) timedOut(c *appsv1.DeploymentCondition) bool {
	switch {
	case c == nil || c.Reason == reasonAvailable:
		return false
	case c.Reason == reasonTimedOut:
		return true
	}
	return r.deadlineAt(c).Before(r.now)
}

// untilDeadline is how long to wait before judging a silent rollout.
func (r *rollout) untilDeadline() time.Duration {
	c := find(r.d.Status, appsv1.DeploymentProgressing)
	if !r.hasDeadline() || c == nil || c.Reason == reasonTimedOut || c.Reason == reasonAvailable || complete(r.d, r.d.Status) {
		return 0
	}
	return max(0, r.deadlineAt(c).Sub(r.now)) + time.Second
}

// setFailure lifts a replica set's failure to create or delete pods, the new
// one's first.
func (r *rollout) setFailure() *appsv1.DeploymentCondition {
	for _, rs := range slices.Backward(r.all()) {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				return &appsv1.DeploymentCondition{Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message,
					LastUpdateTime: c.LastTransitionTime, LastTransitionTime: c.LastTransitionTime}
			}
		}
	}
	return nil
}

// checkPaused notes pausing and resuming, so that the time in between does not
// count against the deadline.
func (r *rollout) checkPaused(ctx context.Context) error {
	c := find(r.d.Status, appsv1.DeploymentProgressing)
	if !r.hasDeadline() || (c != nil && c.Reason == reasonTimedOut) {
		return nil
	}
	noted := c != nil && c.Reason == reasonPaused
	switch {
	case r.d.Spec.Paused && !noted:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused")
	case !r.d.Spec.Paused && noted:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed")
	default:
		return nil
	}
	return r.putStatus(ctx, r.d.Status)
}

// putStatus stores a status that differs from the stored one.
func (r *rollout) putStatus(ctx context.Context, s appsv1.DeploymentStatus) error {
	if equality.Semantic.DeepEqual(r.was, s) {
		return nil
	}
	out := r.d.DeepCopy()
	out.Status = s
	k := client.Key{Resource: client.Deployments, Namespace: r.d.Namespace, Name: r.d.Name}
	got, err := r.env.Client.Update(ctx, k.Sub("status"), out)
	if err != nil {
		return fmt.Errorf("writing the status of %s: %w", k, err)
	}
	r.d.ResourceVersion, r.was = got.GetResourceVersion(), *s.DeepCopy()
	return nil
}
