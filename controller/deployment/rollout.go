package deployment

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// rolling moves replicas from the old sets to the new one as far as the present
// availability allows; the next change of a set's status moves it on.
func (r *rollout) rolling(ctx context.Context) error {
	if err := r.findFresh(ctx, true); err != nil || r.fresh == nil {
		return err
	}
	if n := freshReplicas(r.d, r.all(), r.fresh); n != deref(r.fresh.Spec.Replicas) {
		if err := r.resize(ctx, r.fresh, n); err != nil {
			return err
		}
	}
	return r.shrinkOld(ctx, oldReplicas(r.d, r.old, r.fresh))
}

// recreate stops every old pod before the first new one is created.
func (r *rollout) recreate(ctx context.Context) error {
	scaled := specSum(r.old) > 0
	if err := r.shrinkOld(ctx, make([]int32, len(r.old))); err != nil {
		return err
	}
	if scaled || r.oldPodsRun() {
		return r.findFresh(ctx, false)
	}
	if err := r.findFresh(ctx, true); err != nil || r.fresh == nil {
		return err
	}
	if n := wanted(r.d); n != deref(r.fresh.Spec.Replicas) {
		return r.resize(ctx, r.fresh, n)
	}
	return nil
}

func (r *rollout) shrinkOld(ctx context.Context, to []int32) error {
	for i, rs := range r.old {
		if to[i] != deref(rs.Spec.Replicas) {
			if err := r.resize(ctx, rs, to[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rollout) oldPodsRun() bool {
	old := map[types.UID]bool{}
	for _, rs := range r.old {
		old[rs.UID] = true
	}
	run := false
	r.env.Cache(client.Pods).List(r.d.Namespace, nil, func(o client.Object) bool {
		pod := o.(*corev1.Pod)
		if ref := metav1.GetControllerOfNoCopy(pod); ref != nil && old[ref.UID] && !engine.Finished(pod) {
			run = true
		}
		return !run
	})
	return run
}

// isScaling tells whether the deployment's size changed since its sets were
// last sized.
func (r *rollout) isScaling() bool {
	for _, rs := range r.all() {
		if deref(rs.Spec.Replicas) == 0 {
			continue
		}
		if n, ok := number(rs, desiredAnnotation); ok && n != wanted(r.d) {
			return true
		}
	}
	return false
}

// scale sizes the sets after the deployment's size changed, without rolling.
func (r *rollout) scale(ctx context.Context) error {
	if one := r.activeOrLatest(); one != nil {
		if deref(one.Spec.Replicas) == wanted(r.d) && !r.isScaling() {
			return nil
		}
		return r.resize(ctx, one, wanted(r.d))
	}
	if f := r.fresh; f != nil && deref(f.Spec.Replicas) == wanted(r.d) && f.Status.AvailableReplicas == wanted(r.d) {
		if n, ok := number(f, desiredAnnotation); ok && n == wanted(r.d) {
			return r.shrinkOld(ctx, make([]int32, len(r.old)))
		}
	}
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	active := r.active()
	limits := make([]int32, len(active))
	for i, rs := range active {
		limits[i], _ = number(rs, maxAnnotation)
	}
	to := proportional(r.d, active, limits)
	for i, rs := range active {
		if err := r.resize(ctx, rs, to[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *rollout) active() []*appsv1.ReplicaSet {
	return slices.DeleteFunc(slices.Clone(r.all()), func(rs *appsv1.ReplicaSet) bool { return deref(rs.Spec.Replicas) == 0 })
}

// activeOrLatest is the only set with replicas, or if none has any the one that
// gets them; nil while several have.
func (r *rollout) activeOrLatest() *appsv1.ReplicaSet {
	active := r.active()
	switch {
	case len(active) == 1:
		return active[0]
	case len(active) > 1:
		return nil
	case r.fresh != nil:
		return r.fresh
	case len(r.old) > 0:
		return r.old[len(r.old)-1]
	}
	return nil
}

// cleanUp deletes the oldest sets without pods beyond the history limit.
func (r *rollout) cleanUp(ctx context.Context) error {
	limit := r.d.Spec.RevisionHistoryLimit
	if limit == nil {
		return nil
	}
	gone := slices.DeleteFunc(slices.Clone(r.old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	excess := len(gone) - int(*limit)
	slices.SortStableFunc(gone, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Compare(revision(a.Annotations), revision(b.Annotations))
	})
	for i := range excess {
		rs := gone[i]
		if rs.Status.Replicas != 0 || deref(rs.Spec.Replicas) != 0 || rs.Generation > rs.Status.ObservedGeneration {
			continue
		}
		k := client.Key{Resource: client.ReplicaSets, Namespace: rs.Namespace, Name: rs.Name}
		if err := r.env.Client.Delete(ctx, k, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &rs.UID}}); err != nil {
			return fmt.Errorf("deleting %s beyond the history limit: %w", k, err)
		}
	}
	return nil
}
