package deployment

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// findFresh brings the new replica set's annotations up to date, or creates it
// if create is set and it does not exist.
func (r *rollout) findFresh(ctx context.Context, create bool) error {
	var highest int64
	for _, rs := range r.old {
		highest = max(highest, revision(rs.Annotations))
	}
	rev := strconv.FormatInt(highest+1, 10)
	if r.fresh == nil {
		if !create {
			return nil
		}
		return r.createFresh(ctx, rev)
	}
	changed := annotate(r.d, r.fresh, rev, true)
	if r.fresh.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		r.fresh.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
		changed = true
	}
	if changed {
		if err := r.updateSet(ctx, r.fresh); err != nil {
			return err
		}
	}
	if r.hasDeadline() && find(r.d.Status, appsv1.DeploymentProgressing) == nil {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet", fmt.Sprintf("Found new replica set %q", r.fresh.Name))
	}
	return r.setRevision(ctx)
}

func (r *rollout) createFresh(ctx context.Context, rev string) error {
	d := r.d
	hash := templateHash(&d.Spec.Template, d.Status.CollisionCount)
	template := d.Spec.Template.DeepCopy()
	set(&template.Labels, hashLabel, hash)
	selector := d.Spec.Selector.DeepCopy()
	set(&selector.MatchLabels, hashLabel, hash)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: d.Name + "-" + hash, Namespace: d.Namespace, Labels: maps.Clone(template.Labels),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), MinReadySeconds: d.Spec.MinReadySeconds, Selector: selector, Template: *template},
	}
	*rs.Spec.Replicas = freshReplicas(d, append(r.all(), rs), rs)
	annotate(d, rs, rev, false)
	k := client.Key{Resource: client.ReplicaSets, Namespace: d.Namespace, Name: rs.Name}
	obj, err := r.env.Client.Create(ctx, k, rs)
	switch {
	case apierrors.IsAlreadyExists(err):
		got, getErr := client.Get[*appsv1.ReplicaSet](ctx, r.env.Client, k)
		if getErr != nil {
			return getErr
		}
		if ref := metav1.GetControllerOf(got); ref != nil && ref.UID == d.UID && sameTemplate(&got.Spec.Template, &d.Spec.Template) {
			r.fresh = got.DeepCopy() // ours: the cache did not show it yet
			return r.setRevision(ctx)
		}
		n := int32(1)
		if d.Status.CollisionCount != nil {
			n = *d.Status.CollisionCount + 1
		}
		d.Status.CollisionCount = &n
		if statusErr := r.putStatus(ctx, d.Status); statusErr != nil {
			return statusErr
		}
		return fmt.Errorf("the name %s is taken by another replica set, the next try uses another: %w", rs.Name, err)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case err != nil:
		msg := fmt.Sprintf("Failed to create new replica set %q: %v", rs.Name, err)
		if r.hasDeadline() {
			r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", msg)
			if statusErr := r.putStatus(ctx, d.Status); statusErr != nil {
				r.env.Log.Debug("condition not written", "deployment", d.Namespace+"/"+d.Name, "error", statusErr)
			}
		}
		r.env.Recorder.Event(d, corev1.EventTypeWarning, "ReplicaSetCreateError", msg)
		return fmt.Errorf("creating %s: %w", k, err)
	}
	created, ok := obj.(*appsv1.ReplicaSet)
	if !ok {
		return fmt.Errorf("creating %s: server answered a %T", k, obj)
	}
	r.env.Ledger.Created(engine.KeyOf(d), r.env.Cache(client.ReplicaSets), created)
	r.fresh = created.DeepCopy()
	if n := deref(created.Spec.Replicas); n > 0 {
		r.env.Recorder.Event(d, corev1.EventTypeNormal, "ScalingReplicaSet", fmt.Sprintf("Scaled up replica set %s from 0 to %d", created.Name, n))
	}
	if r.hasDeadline() {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated", fmt.Sprintf("Created new replica set %q", created.Name))
	}
	return r.setRevision(ctx)
}

// annotate gives the new replica set the deployment's annotations and its
// revision. A set that comes back (a rollback) keeps its former revisions as
// history.
func annotate(d *appsv1.Deployment, rs *appsv1.ReplicaSet, rev string, exists bool) (changed bool) {
	for k, v := range d.Annotations {
		if !notCopied[k] && set(&rs.Annotations, k, v) {
			changed = true
		}
	}
	old := rs.Annotations[revisionAnnotation]
	next, err := strconv.ParseInt(rev, 10, 64)
	if err == nil && revision(rs.Annotations) < next {
		set(&rs.Annotations, revisionAnnotation, rev)
		changed = true
		if old != "" {
			history := old
			if h := rs.Annotations[revisionHistoryAnnotation]; h != "" {
				history = h + "," + old
			}
			set(&rs.Annotations, revisionHistoryAnnotation, history)
		}
	}
	if !exists && setSizes(rs, d) {
		changed = true
	}
	return changed
}

// setRevision shows the new set's revision on the deployment.
func (r *rollout) setRevision(ctx context.Context) error {
	rev := r.fresh.Annotations[revisionAnnotation]
	if rev == "" || r.d.Annotations[revisionAnnotation] == rev {
		return nil
	}
	out := r.d.DeepCopy()
	set(&out.Annotations, revisionAnnotation, rev)
	k := client.Key{Resource: client.Deployments, Namespace: r.d.Namespace, Name: r.d.Name}
	got, err := r.env.Client.Update(ctx, k, out)
	if err != nil {
		return fmt.Errorf("writing the revision of %s: %w", k, err)
	}
	set(&r.d.Annotations, revisionAnnotation, rev)
	r.d.ResourceVersion = got.GetResourceVersion()
	return nil
}

// updateSet writes a replica set and takes over what the server made of it.
func (r *rollout) updateSet(ctx context.Context, rs *appsv1.ReplicaSet) error {
	k := client.Key{Resource: client.ReplicaSets, Namespace: rs.Namespace, Name: rs.Name}
	obj, err := r.env.Client.Update(ctx, k, rs.DeepCopy())
	if err != nil {
		return fmt.Errorf("updating %s: %w", k, err)
	}
	if got, ok := obj.(*appsv1.ReplicaSet); ok {
		*rs = *got.DeepCopy()
	}
	return nil
}

// resize scales a replica set and reports it.
func (r *rollout) resize(ctx context.Context, rs *appsv1.ReplicaSet, n int32) error {
	have := deref(rs.Spec.Replicas)
	sizes := setSizes(rs, r.d)
	if have == n && !sizes {
		return nil
	}
	rs.Spec.Replicas = &n
	if err := r.updateSet(ctx, rs); err != nil {
		return err
	}
	switch {
	case n > have:
		r.env.Recorder.Event(r.d, corev1.EventTypeNormal, "ScalingReplicaSet", fmt.Sprintf("Scaled up replica set %s from %d to %d", rs.Name, have, n))
	case n < have:
		r.env.Recorder.Event(r.d, corev1.EventTypeNormal, "ScalingReplicaSet", fmt.Sprintf("Scaled down replica set %s from %d to %d", rs.Name, have, n))
	}
	return nil
}
