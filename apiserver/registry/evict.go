package registry

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
)

var budgetsGVR = schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}

// maxDisrupted bounds the pods that a budget lists as about to go: more mean that
// its controller does not run.
const maxDisrupted = 2000

// processing is how many seconds a new budget may take until it counts.
const processing = 10

// Evict deletes a pod unless a disruption budget forbids it: the eviction
// subresource. The budget is used up by one, so that evictions at the same moment
// do not together do what each may do alone.
func (r *Registry) Evict(ctx context.Context, q Request, e *policyv1.Eviction) error {
	if e.Name != q.Name {
		return apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	if err := sameNamespace(&q, e.Namespace); err != nil {
		return err
	}
	body, err := r.Admit(ctx, &q, Create, policyv1.SchemeGroupVersion.WithKind("Eviction"), e, nil)
	if err != nil {
		return err
	}
	opts := metav1.DeleteOptions{}
	if o := body.(*policyv1.Eviction).DeleteOptions; o != nil {
		opts = *o
	}
	if err := checkDeleteOptions(&opts); err != nil {
		return err
	}
	q.DryRun = q.DryRun || len(opts.DryRun) > 0
	it := q.Resource.Cache.Get(q.key())
	if it == nil {
		return q.notFound()
	}
	pod := it.Object.(*corev1.Pod)
	if err := preconditions(&q, opts.Preconditions, pod); err != nil {
		return err
	}
	if countsForBudget(pod) {
		if err := r.useBudget(ctx, &q, pod); err != nil {
			return err
		}
	}
	if pod.DeletionTimestamp == nil && !q.DryRun {
		if err := r.markEvicted(ctx, q); err != nil {
			return err
		}
	}
	if p := opts.Preconditions; p != nil && p.ResourceVersion != nil {
		opts.Preconditions = &metav1.Preconditions{UID: p.UID} // the mark has changed it
	}
	q.Subresource = ""
	_, _, err = r.Delete(ctx, q, opts)
	return err
}

// countsForBudget tells whether a pod's end disrupts anything.
func countsForBudget(p *corev1.Pod) bool {
	switch p.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return false
	}
	return p.DeletionTimestamp == nil
}

// useBudget takes one disruption from the pod's budget, if it has one.
func (r *Registry) useBudget(ctx context.Context, q *Request, pod *corev1.Pod) error {
	res := r.Resource(budgetsGVR)
	if res == nil {
		return nil
	}
	var found []*policyv1.PodDisruptionBudget
	res.Cache.Snapshot().Ascend(q.Namespace+"/", "", func(i *watchcache.Item) bool {
		b := i.Object.(*policyv1.PodDisruptionBudget)
		if sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector); err == nil && sel.Matches(labels.Set(pod.Labels)) {
			found = append(found, b)
		}
		return true
	})
	if len(found) == 0 {
		return nil
	}
	if len(found) > 1 {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
			Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}}
	}
	if !isReady(pod) && letsTheSickGo(found[0]) {
		return nil
	}
	bq := Request{Resource: res, Namespace: q.Namespace, Name: found[0].Name, Subresource: "status", User: q.User, DryRun: q.DryRun, patched: true}
	_, err := r.modify(ctx, &bq, func(old kind.Object) (kind.Object, error) {
		b := old.DeepCopyObject().(*policyv1.PodDisruptionBudget)
		b.ResourceVersion = ""
		return b, r.disrupt(b, pod.Name)
	})
	return err
}

// disrupt notes in a budget that a pod goes, or says why it may not.
func (r *Registry) disrupt(b *policyv1.PodDisruptionBudget, pod string) error {
	s := &b.Status
	switch {
	case s.ObservedGeneration < b.Generation:
		return tooManyDisruptions(fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name), processing)
	case s.DisruptionsAllowed < 0:
		return apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), b.Name, fmt.Errorf("pdb disruptions allowed is negative"))
	case len(s.DisruptedPods) > maxDisrupted:
		return apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), b.Name, fmt.Errorf("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
	case s.DisruptionsAllowed == 0:
		return tooManyDisruptions(fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, s.DesiredHealthy, s.CurrentHealthy), 0)
	}
	s.DisruptionsAllowed--
	if s.DisruptedPods == nil {
		s.DisruptedPods = map[string]metav1.Time{}
	}
	now := metav1.NewTime(r.cfg.Now()).Rfc3339Copy()
	s.DisruptedPods[pod] = now
	if i := slices.IndexFunc(s.Conditions, func(c metav1.Condition) bool { return c.Type == policyv1.DisruptionAllowedCondition }); i >= 0 && s.DisruptionsAllowed == 0 {
		c := &s.Conditions[i]
		c.Status, c.Reason, c.LastTransitionTime = metav1.ConditionFalse, policyv1.InsufficientPodsReason, now
	}
	return nil
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// letsTheSickGo tells whether pods that are not ready may go whatever the budget has
// left: always, or as long as enough others are well.
func letsTheSickGo(b *policyv1.PodDisruptionBudget) bool {
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// markEvicted tells by a condition why the pod goes.
func (r *Registry) markEvicted(ctx context.Context, q Request) error {
	q.Subresource = "status"
	_, err := r.modify(ctx, &q, func(old kind.Object) (kind.Object, error) {
		pod := old.DeepCopyObject().(*corev1.Pod)
		pod.ResourceVersion = ""
		pod.Status.Conditions = append(slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }),
			corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
				LastTransitionTime: metav1.NewTime(r.cfg.Now()).Rfc3339Copy()})
		return pod, nil
	})
	return err
}

// tooManyDisruptions asks to try again after some seconds; 0 leaves it to the caller,
// whose own retries are the ones that tell of it.
func tooManyDisruptions(why string, after int) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", after)
	if err.ErrStatus.Details == nil {
		err.ErrStatus.Details = &metav1.StatusDetails{}
	}
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: why})
	return err
}
