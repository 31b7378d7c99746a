package admission_test

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
)

// TestEscalation: nobody gives what they do not have.
func TestEscalation(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "x")
	ctx, admin := t.Context(), s.Client(t).RbacV1()
	create := metav1.CreateOptions{}
	role := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "x"}, Rules: rules}
	}
	binding := func(name, role string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "x"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role},
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "u"}}}
	}
	rule := func(group, resource string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	bindable := rule(rbacv1.GroupName, "roles", "bind")
	bindable.ResourceNames = []string{"bindable"}
	for _, r := range []*rbacv1.Role{
		role("u", rule("", "pods", "get", "list"), rule(rbacv1.GroupName, "roles", "create", "update"), rule(rbacv1.GroupName, "rolebindings", "create"), bindable),
		role("strong", rule("", "secrets", "get")), role("bindable", rule("", "secrets", "get")),
	} {
		if _, err := admin.Roles("x").Create(ctx, r, create); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.RoleBindings("x").Create(ctx, binding("u", "u"), create); err != nil {
		t.Fatal(err)
	}
	u := apitest.ClientOf(t, s.As(t, "u")).RbacV1()
	makeRole := func(r *rbacv1.Role) error { _, err := u.Roles("x").Create(ctx, r, create); return err }
	bind := func(name, to string) error {
		_, err := u.RoleBindings("x").Create(ctx, binding(name, to), create)
		return err
	}
	const prefix = ` is forbidden: user "u" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:` + "\n"
	for _, c := range []struct {
		what string
		err  error
		want string
	}{
		{"role within one's own", makeRole(role("weak", rule("", "pods", "get"))), ""},
		{"stronger role", makeRole(role("more", rule("", "pods", "delete", "create", "get"), rule("apps", "deployments", "get"))),
			`roles.rbac.authorization.k8s.io "more"` + prefix + `{APIGroups:[""], Resources:["pods"], Verbs:["create" "delete"]}` + "\n" + `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`},
		{"binding of a stronger role", bind("b1", "strong"),
			`rolebindings.rbac.authorization.k8s.io "b1"` + prefix + `{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}`},
		{"binding with the verb bind", bind("b2", "bindable"), ""},
		{"binding of one's own role", bind("b3", "weak"), ""},
		{"binding of a role that is not there", bind("b4", "none"), `roles.rbac.authorization.k8s.io "none" not found`},
	} {
		if have := errText(c.err); have != c.want {
			t.Errorf("%s:\n have %s\n want %s", c.what, have, c.want)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
