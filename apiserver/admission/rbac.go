package admission

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/auth/rbac/validation"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
)

// escalation keeps users from giving permissions that they do not have: who writes
// a role must hold its rules or may escalate it, who binds one must hold its rules
// or may bind it.
func escalation(d Deps) registry.Admission {
	return registry.Admission{
		Name: "RBAC",
		Validate: func(_ context.Context, a *registry.Attributes) error {
			if a.Resource.Group != rbacv1.GroupName || a.Object == nil || a.User == nil || d.Rules == nil || slices.Contains(a.User.Groups, auth.GroupMasters) {
				return nil
			}
			return escalates(d, a)
		},
	}
}

func escalates(d Deps, a *registry.Attributes) error {
	switch o := a.Object.(type) {
	case *rbacv1.Role:
		if old, ok := a.Old.(*rbacv1.Role); ok && equality.Semantic.DeepEqual(old.Rules, o.Rules) {
			return nil
		}
		return d.mayGrant(a, "escalate", "roles", o.Name, o.Rules)
	case *rbacv1.ClusterRole:
		if old, ok := a.Old.(*rbacv1.ClusterRole); ok && equality.Semantic.DeepEqual(old.Rules, o.Rules) && equality.Semantic.DeepEqual(old.AggregationRule, o.AggregationRule) {
			return nil
		}
		rules := o.Rules
		if o.AggregationRule != nil {
			// What it will have in the end nobody knows: whoever writes it must hold all.
			everything := []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}, {NonResourceURLs: []string{"*"}, Verbs: []string{"*"}}}
			if old, ok := a.Old.(*rbacv1.ClusterRole); !ok || !equality.Semantic.DeepEqual(old.AggregationRule, o.AggregationRule) {
				rules = append(slices.Clone(rules), everything...)
			}
		}
		return d.mayGrant(a, "escalate", "clusterroles", o.Name, rules)
	case *rbacv1.RoleBinding:
		if old, ok := a.Old.(*rbacv1.RoleBinding); ok && equality.Semantic.DeepEqual(old.Subjects, o.Subjects) {
			return nil
		}
		return d.mayBind(a, o.RoleRef, a.Namespace)
	case *rbacv1.ClusterRoleBinding:
		if old, ok := a.Old.(*rbacv1.ClusterRoleBinding); ok && equality.Semantic.DeepEqual(old.Subjects, o.Subjects) {
			return nil
		}
		return d.mayBind(a, o.RoleRef, "")
	}
	return nil
}

func (d Deps) mayBind(a *registry.Attributes, ref rbacv1.RoleRef, namespace string) error {
	resource, in := "clusterroles", ""
	if ref.Kind == "Role" {
		resource, in = "roles", namespace
	}
	may := &auth.Action{User: a.User, Verb: "bind", Group: rbacv1.GroupName, Version: "*", Resource: resource, Namespace: namespace, Name: ref.Name}
	if d.Authorize(may) {
		return nil
	}
	gvr := rbacv1.SchemeGroupVersion.WithResource(resource)
	var rules []rbacv1.PolicyRule
	switch role := d.Lookup(gvr, in, ref.Name).(type) {
	case *rbacv1.Role:
		rules = role.Rules
	case *rbacv1.ClusterRole:
		rules = role.Rules
	default:
		return apierrors.NewNotFound(gvr.GroupResource(), ref.Name)
	}
	return d.mustHold(a, rules)
}

func (d Deps) mayGrant(a *registry.Attributes, verb, resource, name string, rules []rbacv1.PolicyRule) error {
	if d.Authorize(&auth.Action{User: a.User, Verb: verb, Group: rbacv1.GroupName, Version: "*", Resource: resource, Namespace: a.Namespace, Name: name}) {
		return nil
	}
	return d.mustHold(a, rules)
}

// mustHold refuses rules that the user does not hold in the request's namespace.
func (d Deps) mustHold(a *registry.Attributes, rules []rbacv1.PolicyRule) error {
	var held []rbacv1.PolicyRule
	d.Rules(a.User, a.Namespace, func(r []rbacv1.PolicyRule) bool {
		held = append(held, r...)
		return true
	})
	ok, lacking := validation.Covers(held, rules)
	if ok {
		return nil
	}
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		a.User.Username, a.User.Groups, strings.Join(describeRules(lacking), "\n")))
}

// describeRules writes rules in one line each; those that differ in their verbs
// only become one.
func describeRules(rules []rbacv1.PolicyRule) []string {
	type key struct{ group, resource, name, url string }
	verbs := map[key][]string{}
	var order []key
	first := func(s []string) string {
		if len(s) == 0 {
			return "\x00"
		}
		return s[0]
	}
	for _, r := range rules { // Covers has broken them down to one of each
		k := key{first(r.APIGroups), first(r.Resources), first(r.ResourceNames), first(r.NonResourceURLs)}
		if _, ok := verbs[k]; !ok {
			order = append(order, k)
		}
		verbs[k] = append(verbs[k], r.Verbs...)
	}
	var out []string
	for _, k := range order {
		var parts []string
		add := func(name, value string) {
			if value != "\x00" {
				parts = append(parts, fmt.Sprintf("%s:%q", name, []string{value}))
			}
		}
		add("APIGroups", k.group)
		add("Resources", k.resource)
		add("ResourceNames", k.name)
		add("NonResourceURLs", k.url)
		v := slices.Compact(slices.Sorted(slices.Values(verbs[k])))
		quoted := make([]string, len(v))
		for i := range v {
			quoted[i] = fmt.Sprintf("%q", v[i])
		}
		parts = append(parts, "Verbs:["+strings.Join(quoted, " ")+"]")
		out = append(out, "{"+strings.Join(parts, ", ")+"}")
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}
