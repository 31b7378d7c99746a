package registry

import (
	"context"
	"fmt"
	"slices"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Bind assigns a pod to a node: the binding subresource.
func (r *Registry) Bind(ctx context.Context, q Request, b *corev1.Binding) error {
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
		switch {
		case b.UID != "" && b.UID != pod.UID:
			return nil, apierrors.NewConflict(q.Resource.GroupResource(), q.Name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", b.UID, pod.UID))
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
		pod.Status.Conditions = slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(r.cfg.Now()).Rfc3339Copy()})
		pod.ResourceVersion = ""
		return pod, nil
	})
	return err
}

var budgetsGVR = schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}

// Evict deletes a pod unless a disruption budget forbids it.
func (r *Registry) Evict(ctx context.Context, q Request, e *policyv1.Eviction) error {
	it := q.Resource.Cache.Get(q.key())
	if it == nil {
		return q.notFound()
	}
	pod := it.Object.(*corev1.Pod)
	if budgets := r.Resource(budgetsGVR); budgets != nil && pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
		var blocked error
		budgets.Cache.Snapshot().Ascend(q.Namespace+"/", "", func(i *watchcache.Item) bool {
			pdb := i.Object.(*policyv1.PodDisruptionBudget)
			sel, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
			if err == nil && sel.Matches(labels.Set(pod.Labels)) && pdb.Status.DisruptionsAllowed <= 0 {
				blocked = tooManyDisruptions(pdb)
			}
			return blocked == nil
		})
		if blocked != nil {
			return blocked
		}
	}
	body, err := r.Admit(ctx, &q, Create, policyv1.SchemeGroupVersion.WithKind("Eviction"), e, nil)
	if err != nil {
		return err
	}
	e = body.(*policyv1.Eviction)
	opts := metav1.DeleteOptions{}
	if e.DeleteOptions != nil {
		opts = *e.DeleteOptions
	}
	q.Subresource = ""
	_, _, err = r.Delete(ctx, q, opts)
	return err
}

func tooManyDisruptions(pdb *policyv1.PodDisruptionBudget) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 10)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    policyv1.DisruptionBudgetCause,
		Message: fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", pdb.Name, pdb.Status.DesiredHealthy, pdb.Status.CurrentHealthy)})
	return err
}

// Finalize sets a namespace's spec.finalizers: the finalize subresource.
func (r *Registry) Finalize(ctx context.Context, q Request, ns *corev1.Namespace) (*watchcache.Item, error) {
	return r.modify(ctx, &q, func(old kind.Object) (kind.Object, error) {
		next := old.DeepCopyObject().(*corev1.Namespace)
		next.Spec.Finalizers = ns.Spec.Finalizers
		next.ResourceVersion = ns.ResourceVersion
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
