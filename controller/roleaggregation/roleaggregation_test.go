package roleaggregation

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func role(name string, labels map[string]string, resources ...string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	for _, res := range resources {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{res}})
	}
	return r
}

func TestAggregate(t *testing.T) {
	view := map[string]string{"to-view": "true"}
	sum := role("sum", view) // selects itself too, which must not count
	sum.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: view}}}
	sum.Rules = role("", nil, "stale").Rules
	got, err := Aggregate(sum, []*rbacv1.ClusterRole{role("b", view, "pods", "nodes"), role("a", view, "pods"), role("c", nil, "secrets"), sum})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"pods", "nodes"}
	if len(got) != len(want) {
		t.Fatalf("%d rules, want %d: %v", len(got), len(want), got)
	}
	for i, w := range want {
		if got[i].Resources[0] != w {
			t.Errorf("rule %d is for %s, want %s", i, got[i].Resources[0], w)
		}
	}
	sum.AggregationRule.ClusterRoleSelectors[0].MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Sideways"}}
	if _, err := Aggregate(sum, nil); err == nil {
		t.Error("a bad selector was accepted")
	}
}
