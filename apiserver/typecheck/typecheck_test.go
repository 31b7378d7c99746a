package typecheck_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	admv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/typecheck"
)

func TestWarnings(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c := s.Client(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- typecheck.New(s.Registry, slog.New(slog.DiscardHandler)).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicies().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	p := &admv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: admv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admv1.MatchResources{ResourceRules: []admv1.NamedRuleWithOperations{{RuleWithOperations: admv1.RuleWithOperations{
			Operations: []admv1.OperationType{admv1.Create}, Rule: admv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}}}}}},
		Validations: []admv1.Validation{
			{Expression: "object.spec.replicas > 1 && object.spec.template.spec.containers.all(c, c.image != '')"},
			{Expression: "object.spec.replicas > '1'", MessageExpression: "'a' + object.metadata.name"},
			{Expression: "object.foo == 1"},
		},
	}}
	if _, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(ctx, p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for e := range w.ResultChan() {
		got, ok := e.Object.(*admv1.ValidatingAdmissionPolicy)
		if !ok || got.Status.TypeChecking == nil {
			continue
		}
		list := got.Status.TypeChecking.ExpressionWarnings
		if len(list) != 2 || list[0].FieldRef != "spec.validations[1].expression" || list[1].FieldRef != "spec.validations[2].expression" ||
			!strings.Contains(list[0].Warning, "apps/v1, Kind=Deployment: ") || !strings.Contains(list[0].Warning, "found no matching overload for '_>_'") ||
			!strings.Contains(list[1].Warning, "undefined field 'foo'") {
			t.Errorf("warnings %+v", list)
		}
		if got.Status.ObservedGeneration != got.Generation {
			t.Errorf("observed generation %d of %d", got.Status.ObservedGeneration, got.Generation)
		}
		return
	}
	t.Fatal("the watch ended")
}
