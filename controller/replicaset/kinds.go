package replicaset

import (
	"context"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func loadSet(env *engine.Env, key engine.Key) (*workload, bool) {
	rs, ok := client.Cached[*appsv1.ReplicaSet](env.Cache(client.ReplicaSets), key.Namespace, key.Name)
	if !ok {
		return nil, false
	}
	w := &workload{
		obj: rs, kind: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
		key:      client.Key{Resource: client.ReplicaSets, Namespace: key.Namespace, Name: key.Name},
		replicas: replicas(rs.Spec.Replicas), selector: engine.SelectorOf(rs.Spec.Selector),
		template: &rs.Spec.Template, minReady: rs.Spec.MinReadySeconds,
	}
	w.write = func(ctx context.Context, s status, f *failure, now time.Time) error {
		next := appsv1.ReplicaSetStatus{
			Replicas: s.replicas, FullyLabeledReplicas: s.fullyLabeled, ReadyReplicas: s.ready, AvailableReplicas: s.available,
			TerminatingReplicas: &s.terminating, ObservedGeneration: rs.Generation,
		}
		var old *condition
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				old = &condition{c.Reason, c.Message, c.LastTransitionTime}
			} else {
				next.Conditions = append(next.Conditions, c)
			}
		}
		if c := failureCondition(old, f, now); c != nil {
			next.Conditions = append(next.Conditions, appsv1.ReplicaSetCondition{
				Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, LastTransitionTime: c.at, Reason: c.reason, Message: c.message})
		}
		if same(rs.Status, next) {
			return nil
		}
		out := rs.DeepCopy()
		out.Status = next
		_, err := env.Client.Update(ctx, w.key.Sub("status"), out)
		return err
	}
	return w, true
}

func loadReplication(env *engine.Env, key engine.Key) (*workload, bool) {
	rc, ok := client.Cached[*corev1.ReplicationController](env.Cache(client.ReplicationControllers), key.Namespace, key.Name)
	if !ok || rc.Spec.Template == nil {
		return nil, false
	}
	w := &workload{
		obj: rc, kind: corev1.SchemeGroupVersion.WithKind("ReplicationController"),
		key:      client.Key{Resource: client.ReplicationControllers, Namespace: key.Namespace, Name: key.Name},
		replicas: replicas(rc.Spec.Replicas), selector: labels.SelectorFromSet(rc.Spec.Selector),
		template: rc.Spec.Template, minReady: rc.Spec.MinReadySeconds,
	}
	w.write = func(ctx context.Context, s status, f *failure, now time.Time) error {
		next := corev1.ReplicationControllerStatus{
			Replicas: s.replicas, FullyLabeledReplicas: s.fullyLabeled, ReadyReplicas: s.ready, AvailableReplicas: s.available,
			ObservedGeneration: rc.Generation,
		}
		var old *condition
		for _, c := range rc.Status.Conditions {
			if c.Type == corev1.ReplicationControllerReplicaFailure {
				old = &condition{c.Reason, c.Message, c.LastTransitionTime}
			} else {
				next.Conditions = append(next.Conditions, c)
			}
		}
		if c := failureCondition(old, f, now); c != nil {
			next.Conditions = append(next.Conditions, corev1.ReplicationControllerCondition{
				Type: corev1.ReplicationControllerReplicaFailure, Status: corev1.ConditionTrue, LastTransitionTime: c.at, Reason: c.reason, Message: c.message})
		}
		if same(rc.Status, next) {
			return nil
		}
		out := rc.DeepCopy()
		out.Status = next
		_, err := env.Client.Update(ctx, w.key.Sub("status"), out)
		return err
	}
	return w, true
}
