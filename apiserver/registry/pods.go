package registry

import (
	"context"
	"fmt"
	"slices"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Bind assigns a pod to a node: the binding subresource.
func (r *Registry) Bind(ctx context.Context, q Request, b *corev1.Binding) error {
	if b.Name != q.Name {
		return apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if err := sameNamespace(&q, b.Namespace); err != nil {
		return err
	}
	if b.Target.Name == "" {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), q.Name,
			field.ErrorList{field.Required(field.NewPath("target", "name"), "")})
	}
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), q.Name,
			field.ErrorList{field.NotSupported(field.NewPath("target", "kind"), b.Target.Kind, []string{"Node", "<empty>"})})
	}
	q.Subresource = "binding"
	out, err := r.Admit(ctx, &q, Create, corev1.SchemeGroupVersion.WithKind("Binding"), b, nil)
	if err != nil {
		return err
	}
	b = out.(*corev1.Binding)
	_, err = r.modify(ctx, &q, func(old kind.Object) (kind.Object, error) {
		pod := old.DeepCopyObject().(*corev1.Pod)
		var want metav1.Preconditions
		if b.UID != "" {
			want.UID = &b.UID
		}
		if b.ResourceVersion != "" {
			want.ResourceVersion = &b.ResourceVersion
		}
		if err := preconditions(&q, &want, old); err != nil {
			return nil, err
		}
		switch {
		case pod.DeletionTimestamp != nil:
			return nil, apierrors.NewConflict(q.Resource.GroupResource(), q.Name, fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", q.Name))
		case pod.Spec.NodeName != "":
			return nil, apierrors.NewConflict(q.Resource.GroupResource(), q.Name, fmt.Errorf("pod %s is already assigned to node %q", q.Name, pod.Spec.NodeName))
		case len(pod.Spec.SchedulingGates) > 0:
			return nil, apierrors.NewConflict(q.Resource.GroupResource(), q.Name, fmt.Errorf("pod %s has non-empty .spec.schedulingGates", q.Name))
		}
		pod.Spec.NodeName = b.Target.Name
		for k, v := range b.Annotations {
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, k, v)
		}
		for k, v := range b.Labels {
			metav1.SetMetaDataLabel(&pod.ObjectMeta, k, v)
		}
		pod.Status.Conditions = slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(r.cfg.Now()).Rfc3339Copy()})
		pod.ResourceVersion = ""
		return pod, nil
	})
	return err
}

// Finalize sets a namespace's spec.finalizers: the finalize subresource. Its
// metadata can change as well.
func (r *Registry) Finalize(ctx context.Context, q Request, ns *corev1.Namespace) (*watchcache.Item, error) {
	if ns.Name != q.Name {
		return nil, nameMismatch(ns.Name, q.Name)
	}
	return r.modify(ctx, &q, func(old kind.Object) (kind.Object, error) {
		next := ns.DeepCopy()
		next.Status = *old.(*corev1.Namespace).Status.DeepCopy()
		return next, nil
	})
}

// ScaleOf shows an object as an autoscaling/v1 Scale.
func ScaleOf(res *Resource, obj kind.Object) *autoscalingv1.Scale {
	s := &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v1", Kind: "Scale"},
		ObjectMeta: metav1.ObjectMeta{Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
			ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp()},
		Spec:   autoscalingv1.ScaleSpec{Replicas: res.Scale.Replicas(obj)},
		Status: autoscalingv1.ScaleStatus{Replicas: res.Scale.StatusReplicas(obj)},
	}
	if res.Scale.Selector != nil {
		s.Status.Selector = res.Scale.Selector(obj)
	}
	return s
}

// UpdateScale sets the replicas that change makes of the present Scale.
func (r *Registry) UpdateScale(ctx context.Context, q Request, change func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error)) (*autoscalingv1.Scale, error) {
	res := q.Resource.hub
	it, err := r.modify(ctx, &q, func(old kind.Object) (kind.Object, error) {
		s, err := change(ScaleOf(res, old))
		if err != nil {
			return nil, err
		}
		body, err := r.Admit(ctx, &q, Update, autoscalingv1.SchemeGroupVersion.WithKind("Scale"), s, ScaleOf(res, old))
		if err != nil {
			return nil, err
		}
		s = body.(*autoscalingv1.Scale)
		if s.Name != q.Name {
			return nil, nameMismatch(s.Name, q.Name)
		}
		if err := sameNamespace(&q, s.Namespace); err != nil {
			return nil, err
		}
		if s.UID != "" {
			if err := preconditions(&q, &metav1.Preconditions{UID: &s.UID}, old); err != nil {
				return nil, err
			}
		}
		if s.Spec.Replicas < 0 {
			return nil, apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), q.Name, field.ErrorList{
				field.Invalid(field.NewPath("spec", "replicas"), s.Spec.Replicas, "must be greater than or equal to 0")})
		}
		next := old.DeepCopyObject().(kind.Object)
		res.Scale.SetReplicas(next, s.Spec.Replicas)
		next.SetResourceVersion(s.ResourceVersion)
		return next, nil
	})
	if err != nil {
		return nil, err
	}
	return ScaleOf(res, it.Object), nil
}
