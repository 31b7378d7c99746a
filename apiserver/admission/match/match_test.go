package match_test

import (
	"testing"

	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/registry"
)

func resource(group, version, name string, namespaced bool) *registry.Resource {
	return &registry.Resource{Kind: &kind.Kind{Group: group, Version: version, Resource: name, Namespaced: namespaced}}
}

func TestVersion(t *testing.T) {
	v1, beta := resource("apps", "v1", "deployments", true), resource("apps", "v1beta1", "deployments", true)
	nodes := resource("", "v1", "nodes", false)
	type rules = []admv1.NamedRuleWithOperations
	rule := func(group, version, res string, ops ...admv1.OperationType) admv1.NamedRuleWithOperations {
		return admv1.NamedRuleWithOperations{RuleWithOperations: admv1.RuleWithOperations{Operations: ops,
			Rule: admv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{res}}}}
	}
	scoped := func(r admv1.NamedRuleWithOperations, s admv1.ScopeType) admv1.NamedRuleWithOperations {
		r.Scope = &s
		return r
	}
	named := func(r admv1.NamedRuleWithOperations, names ...string) admv1.NamedRuleWithOperations {
		r.ResourceNames = names
		return r
	}
	exact, x := admv1.Exact, "x"
	for name, c := range map[string]struct {
		rules, exclude rules
		policy         *admv1.MatchPolicyType
		q              match.Query
		name           *string
		versions       []*registry.Resource
		want           *registry.Resource
	}{
		"same version":              {rules: rules{rule("apps", "v1", "deployments", "CREATE")}, q: match.Query{Resource: v1, Operation: "CREATE"}, versions: []*registry.Resource{v1, beta}, want: v1},
		"equivalent version":        {rules: rules{rule("apps", "v1beta1", "deployments", "CREATE")}, q: match.Query{Resource: v1, Operation: "CREATE"}, versions: []*registry.Resource{v1, beta}, want: beta},
		"exact":                     {rules: rules{rule("apps", "v1beta1", "deployments", "CREATE")}, policy: &exact, q: match.Query{Resource: v1, Operation: "CREATE"}, versions: []*registry.Resource{v1, beta}},
		"other operation":           {rules: rules{rule("apps", "v1", "deployments", "UPDATE")}, q: match.Query{Resource: v1, Operation: "CREATE"}, versions: []*registry.Resource{v1}},
		"subresource not named":     {rules: rules{rule("apps", "v1", "deployments", "*")}, q: match.Query{Resource: v1, Subresource: "scale", Operation: "UPDATE"}, versions: []*registry.Resource{v1}},
		"subresource":               {rules: rules{rule("apps", "v1", "deployments/scale", "*")}, q: match.Query{Resource: v1, Subresource: "scale", Operation: "UPDATE"}, versions: []*registry.Resource{v1}, want: v1},
		"all subresources":          {rules: rules{rule("*", "*", "deployments/*", "*")}, q: match.Query{Resource: v1, Subresource: "scale", Operation: "UPDATE"}, versions: []*registry.Resource{v1}, want: v1},
		"all resources, not sub":    {rules: rules{rule("*", "*", "*", "*")}, q: match.Query{Resource: v1, Subresource: "scale", Operation: "UPDATE"}, versions: []*registry.Resource{v1}},
		"subresource of everything": {rules: rules{rule("*", "*", "*/scale", "*")}, q: match.Query{Resource: v1, Subresource: "scale", Operation: "UPDATE"}, versions: []*registry.Resource{v1}, want: v1},
		"cluster scope":             {rules: rules{scoped(rule("*", "*", "*", "*"), admv1.ClusterScope)}, q: match.Query{Resource: v1, Operation: "UPDATE"}, versions: []*registry.Resource{v1}},
		"cluster scope, a node":     {rules: rules{scoped(rule("*", "*", "*", "*"), admv1.ClusterScope)}, q: match.Query{Resource: nodes, Operation: "UPDATE"}, versions: []*registry.Resource{nodes}, want: nodes},
		"maybe this name":           {rules: rules{named(rule("*", "*", "*", "*"), "y")}, q: match.Query{Resource: v1, Operation: "UPDATE"}, versions: []*registry.Resource{v1}, want: v1},
		"not this name":             {rules: rules{named(rule("*", "*", "*", "*"), "y")}, q: match.Query{Resource: v1, Operation: "UPDATE"}, name: &x, versions: []*registry.Resource{v1}},
		"excluded":                  {rules: rules{rule("*", "*", "*", "*")}, exclude: rules{rule("apps", "*", "*", "*")}, q: match.Query{Resource: v1, Operation: "UPDATE"}, versions: []*registry.Resource{v1}},
		"excluded by version":       {rules: rules{rule("*", "*", "*", "*")}, exclude: rules{rule("apps", "v1beta1", "*", "*")}, q: match.Query{Resource: v1, Operation: "UPDATE"}, versions: []*registry.Resource{v1, beta}},
		"excluded by name, maybe":   {rules: rules{rule("*", "*", "*", "*")}, exclude: rules{named(rule("*", "*", "*", "*"), "x")}, q: match.Query{Resource: v1, Operation: "UPDATE"}, versions: []*registry.Resource{v1}, want: v1},
		"excluded by name":          {rules: rules{rule("*", "*", "*", "*")}, exclude: rules{named(rule("*", "*", "*", "*"), "x")}, q: match.Query{Resource: v1, Operation: "UPDATE"}, name: &x, versions: []*registry.Resource{v1}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := match.New(c.rules, c.exclude, c.policy, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Version(c.q, c.versions, c.name); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestObject(t *testing.T) {
	pods := resource("", "v1", "pods", true)
	spaces := resource("", "v1", "namespaces", false)
	labels := func(name string) (map[string]string, bool) { return map[string]string{"ns": name}, name != "gone" }
	labelled := func(k, v string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{k: v}}}
	}
	sel := func(k, v string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}
	}
	for name, c := range map[string]struct {
		namespace, object *metav1.LabelSelector
		a                 registry.Attributes
		want, fails       bool
	}{
		"new object":        {object: sel("a", "b"), a: registry.Attributes{Resource: pods, Object: labelled("a", "b"), Old: labelled("a", "c")}, want: true},
		"old object":        {object: sel("a", "b"), a: registry.Attributes{Resource: pods, Object: labelled("a", "c"), Old: labelled("a", "b")}, want: true},
		"no object":         {object: sel("a", "b"), a: registry.Attributes{Resource: pods, Body: &corev1.PodExecOptions{}}},
		"absent, not equal": {object: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: metav1.LabelSelectorOpDoesNotExist}}}, a: registry.Attributes{Resource: pods, Object: labelled("c", "d")}, want: true},
		"namespace":         {namespace: sel("ns", "one"), a: registry.Attributes{Resource: pods, Namespace: "one", Object: labelled("a", "b")}, want: true},
		"other namespace":   {namespace: sel("ns", "one"), a: registry.Attributes{Resource: pods, Namespace: "two", Object: labelled("a", "b")}},
		"no namespace":      {namespace: sel("ns", "one"), a: registry.Attributes{Resource: pods, Namespace: "gone", Object: labelled("a", "b")}, fails: true},
		"a namespace itself": {namespace: sel("a", "b"), a: registry.Attributes{Resource: spaces, Name: "x", Operation: registry.Create,
			Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}}}, want: true},
		"a namespace deleted": {namespace: sel("ns", "x"), a: registry.Attributes{Resource: spaces, Name: "x", Operation: registry.Delete}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := match.New(nil, nil, nil, c.namespace, c.object)
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Object(&c.a, nil, labels)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("%v, %v; want %v, fails %v", got, err, c.want, c.fails)
			}
		})
	}
}
