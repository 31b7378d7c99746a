package registry_test

import (
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/apiserver/apitest"
)

// Evictions at the same moment together do no more than the budget allows, which
// lists who goes; a trial uses nothing up.
func TestEvictionsShareABudget(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	ctx, c := t.Context(), s.Client(t)
	labels := map[string]string{"a": "b"}
	if _, err := c.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	const pods, allowed = 6, 2
	for i := range pods {
		p, err := c.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), Labels: labels},
			Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "x"}}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if _, err := c.CoreV1().Pods("default").UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	least := intstr.FromInt32(pods - allowed)
	budgets := c.PolicyV1().PodDisruptionBudgets("default")
	b, err := budgets.Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b"},
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &least, Selector: &metav1.LabelSelector{MatchLabels: labels}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, DisruptionsAllowed: allowed, CurrentHealthy: pods, DesiredHealthy: pods - allowed, ExpectedPods: pods}
	if _, err := budgets.UpdateStatus(ctx, b, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	trial := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p0"}, DeleteOptions: &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}}
	if err := c.CoreV1().Pods("default").EvictV1(ctx, trial); err != nil {
		t.Fatal(err)
	}
	if b, err = budgets.Get(ctx, "b", metav1.GetOptions{}); err != nil || b.Status.DisruptionsAllowed != allowed || len(b.Status.DisruptedPods) > 0 {
		t.Fatalf("after a trial: %+v, %v", b.Status, err)
	}
	// A client that waits and tries again would not tell.
	evict := func(e *policyv1.Eviction) error {
		return c.CoreV1().RESTClient().Post().Namespace("default").Resource("pods").Name(e.Name).SubResource("eviction").MaxRetries(0).Body(e).Do(ctx).Error()
	}
	errs := make([]error, pods)
	var all sync.WaitGroup
	for i := range pods {
		all.Go(func() {
			errs[i] = evict(&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i)}})
		})
	}
	all.Wait()
	gone := 0
	for i, err := range errs {
		p, getErr := c.CoreV1().Pods("default").Get(ctx, fmt.Sprintf("p%d", i), metav1.GetOptions{})
		if getErr != nil {
			t.Fatal(getErr)
		}
		marked := len(p.Status.Conditions) == 2 && p.Status.Conditions[1].Type == corev1.DisruptionTarget
		switch {
		case err == nil:
			gone++
			if p.DeletionTimestamp == nil || !marked {
				t.Errorf("%s was evicted, but is %+v", p.Name, p.Status.Conditions)
			}
		case !apierrors.IsTooManyRequests(err):
			t.Errorf("%s: %v", p.Name, err)
		case p.DeletionTimestamp != nil || marked:
			t.Errorf("%s may not go, but is %+v", p.Name, p.Status.Conditions)
		}
	}
	if gone != allowed {
		t.Errorf("%d evictions, want %d", gone, allowed)
	}
	if b, err = budgets.Get(ctx, "b", metav1.GetOptions{}); err != nil || b.Status.DisruptionsAllowed != 0 || len(b.Status.DisruptedPods) != allowed {
		t.Errorf("the budget: %+v, %v", b.Status, err)
	}
}
