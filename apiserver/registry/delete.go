package registry

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Delete asks for an object's deletion. gone tells that it has been removed;
// otherwise finalizers or a grace period hold it, and it is returned as it is
// now.
func (r *Registry) Delete(ctx context.Context, q Request, opts metav1.DeleteOptions) (it *watchcache.Item, gone bool, err error) {
	if err := checkDeleteOptions(&opts); err != nil {
		return nil, false, err
	}
	res := q.Resource.hub
	for race := 0; ; race++ {
		it, err := r.latest(ctx, res, q.key(), race > 0)
		if err != nil {
			return nil, false, err
		}
		if it == nil {
			return nil, false, q.notFound()
		}
		out, gone, done, err := r.deleteOnce(ctx, &q, it, opts)
		if done || err != nil {
			return out, gone, err
		}
		if race == maxRaces {
			return nil, false, q.conflict(q.Name)
		}
	}
}

func checkDeleteOptions(o *metav1.DeleteOptions) error {
	if o.OrphanDependents != nil && o.PropagationPolicy != nil {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", field.ErrorList{
			field.Invalid(field.NewPath("propagationPolicy"), o.PropagationPolicy, "orphanDependents and deletionPropagation cannot be both set")})
	}
	if slices.ContainsFunc(o.DryRun, func(d string) bool { return d != metav1.DryRunAll }) {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", field.ErrorList{
			field.NotSupported(field.NewPath("dryRun"), o.DryRun, []string{metav1.DryRunAll})})
	}
	if p := o.PropagationPolicy; p != nil {
		switch *p {
		case metav1.DeletePropagationForeground, metav1.DeletePropagationBackground, metav1.DeletePropagationOrphan:
		default:
			return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", field.ErrorList{
				field.NotSupported(field.NewPath("propagationPolicy"), p, []string{string(metav1.DeletePropagationForeground), string(metav1.DeletePropagationBackground), string(metav1.DeletePropagationOrphan), "nil"})})
		}
	}
	return nil
}

func preconditions(q *Request, p *metav1.Preconditions, obj kind.Object) error {
	if p == nil {
		return nil
	}
	if p.UID != nil && *p.UID != obj.GetUID() {
		return apierrors.NewConflict(q.Resource.GroupResource(), q.Name,
			fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, obj.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != obj.GetResourceVersion() {
		return apierrors.NewConflict(q.Resource.GroupResource(), q.Name,
			fmt.Errorf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, obj.GetResourceVersion()))
	}
	return nil
}

func (r *Registry) deleteOnce(ctx context.Context, q *Request, it *watchcache.Item, opts metav1.DeleteOptions) (out *watchcache.Item, gone, done bool, err error) {
	res, old := q.Resource.hub, it.Object
	if err := preconditions(q, opts.Preconditions, old); err != nil {
		return nil, false, true, err
	}
	attrs := r.attributes(q, Delete, nil, old)
	attrs.Options = &opts
	if err := r.mutate(ctx, attrs); err != nil {
		return nil, false, true, err
	}
	if err := r.validate(ctx, attrs); err != nil {
		return nil, false, true, err
	}
	obj := old.DeepCopyObject().(kind.Object)
	if res.PrepareDelete != nil {
		res.PrepareDelete(obj)
	}
	obj.SetFinalizers(finalizersFor(obj.GetFinalizers(), opts, orphansByDefault(q)))
	grace := gracePeriod(old, opts)
	if len(obj.GetFinalizers()) == 0 && grace == 0 && !holds(obj) {
		if q.DryRun {
			return it, true, true, nil
		}
		rev, done, err := r.remove(ctx, res, it.Key, it.Revision, old)
		if err != nil || !done {
			return nil, false, false, err
		}
		return watchcache.NewItem(it.Key, obj, rev), true, true, nil
	}
	markDeleted(obj, grace, r.cfg.Now())
	if unchanged(obj, old) {
		return it, false, true, nil
	}
	if q.DryRun {
		return dryRunItem(it.Key, obj, it.Revision), false, true, nil
	}
	out, err = r.put(ctx, res, it.Key, it.Revision, obj)
	return out, false, out != nil, err
}

// markDeleted sets the deletion time once; a later, shorter grace period brings
// it forward.
func markDeleted(obj kind.Object, grace int64, now time.Time) {
	if at := obj.GetDeletionTimestamp(); at != nil {
		cur := obj.GetDeletionGracePeriodSeconds()
		if cur == nil || grace >= *cur {
			return
		}
		requested := at.Add(-time.Duration(*cur) * time.Second)
		next := metav1.NewTime(requested.Add(time.Duration(grace) * time.Second)).Rfc3339Copy()
		obj.SetDeletionTimestamp(&next)
		obj.SetDeletionGracePeriodSeconds(&grace)
		return
	}
	at := metav1.NewTime(now.Add(time.Duration(grace) * time.Second)).Rfc3339Copy()
	obj.SetDeletionTimestamp(&at)
	obj.SetDeletionGracePeriodSeconds(&grace)
	if obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	if ns, ok := obj.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
}

// gracePeriod is how many seconds the object lives on after the deletion; only
// pods that run have one.
func gracePeriod(obj kind.Object, opts metav1.DeleteOptions) int64 {
	pod, ok := obj.(*corev1.Pod)
	if ok && pod.DeletionTimestamp != nil {
		// A deletion under way: only an explicit, shorter period changes it.
		cur := pod.DeletionGracePeriodSeconds
		switch {
		case cur == nil || *cur == 0:
			return 0
		case opts.GracePeriodSeconds == nil:
			return *cur
		}
	}
	if !ok || pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return 0
	}
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = *pod.Spec.TerminationGracePeriodSeconds
	}
	if opts.GracePeriodSeconds != nil {
		grace = *opts.GracePeriodSeconds
	}
	if grace < 0 {
		grace = 1
	}
	return grace
}

// finalizersFor adds or drops the finalizers by which the garbage collector
// learns what becomes of the dependents.
func finalizersFor(have []string, opts metav1.DeleteOptions, orphanByDefault bool) []string {
	orphan, foreground := slices.Contains(have, metav1.FinalizerOrphanDependents), slices.Contains(have, metav1.FinalizerDeleteDependents)
	if !orphan && !foreground {
		orphan = orphanByDefault
	}
	switch {
	case opts.OrphanDependents != nil:
		orphan, foreground = *opts.OrphanDependents, false
	case opts.PropagationPolicy != nil:
		orphan = *opts.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *opts.PropagationPolicy == metav1.DeletePropagationForeground
	}
	out := slices.DeleteFunc(slices.Clone(have), func(f string) bool {
		return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
	})
	if orphan {
		out = append(out, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		out = append(out, metav1.FinalizerDeleteDependents)
	}
	return out
}

// orphansByDefault tells the kinds that let their dependents live on when a
// deletion does not say: a promise from before garbage collection.
func orphansByDefault(q *Request) bool {
	switch q.Resource.GVR() {
	case schema.GroupVersionResource{Version: "v1", Resource: "replicationcontrollers"},
		schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}:
		return true
	}
	return false
}

// holds tells whether a kind's own finalizers, outside metadata, remain.
func holds(obj kind.Object) bool {
	ns, ok := obj.(*corev1.Namespace)
	return ok && len(ns.Spec.Finalizers) > 0
}

// DeleteCollection deletes what a list would show and returns it.
func (r *Registry) DeleteCollection(ctx context.Context, q Request, sel ListOptions, opts metav1.DeleteOptions) (*List, error) {
	list, err := r.List(ctx, q, sel)
	if err != nil {
		return nil, err
	}
	for _, it := range list.Items {
		one := q
		one.Namespace, one.Name = it.Object.GetNamespace(), it.Object.GetName()
		if _, _, err := r.Delete(ctx, one, opts); err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return list, nil
}
