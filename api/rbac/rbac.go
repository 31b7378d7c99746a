// Package rbac declares roles and their bindings.
package rbac

import (
	"fmt"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const group = rbacv1.GroupName

// Role declares rbac.authorization.k8s.io/v1 Role.
func Role() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "Role", Resource: "roles", Namespaced: true, NoGeneration: true, AllowCreateOnUpdate: true,
		ValidName: path.ValidatePathSegmentName,
		Validate:  kind.Check(validateRole),
		Columns:   columns.Named(columns.CreatedAt()),
		Row: kind.RowOf(func(r *rbacv1.Role, _ time.Time) []any {
			return []any{r.Name, r.CreationTimestamp.UTC().Format(time.RFC3339)}
		}),
	}
}

// ClusterRole declares rbac.authorization.k8s.io/v1 ClusterRole.
func ClusterRole() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ClusterRole", Resource: "clusterroles", NoGeneration: true, AllowCreateOnUpdate: true,
		ValidName: path.ValidatePathSegmentName,
		Validate:  kind.Check(validateClusterRole),
		Columns:   columns.Named(columns.CreatedAt()),
		Row: kind.RowOf(func(r *rbacv1.ClusterRole, _ time.Time) []any {
			return []any{r.Name, r.CreationTimestamp.UTC().Format(time.RFC3339)}
		}),
	}
}

// RoleBinding declares rbac.authorization.k8s.io/v1 RoleBinding.
func RoleBinding() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "RoleBinding", Resource: "rolebindings", Namespaced: true, NoGeneration: true, AllowCreateOnUpdate: true,
		ValidName:      path.ValidatePathSegmentName,
		Default:        kind.Each(func(b *rbacv1.RoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) }),
		Validate:       kind.Check(validateRoleBinding),
		ValidateUpdate: kind.CheckChange(validateRoleBindingUpdate),
		Columns:        bindingColumns(),
		Row: kind.RowOf(func(b *rbacv1.RoleBinding, now time.Time) []any {
			return bindingRow(b.Name, b.RoleRef, b.Subjects, columns.Created(b, now))
		}),
	}
}

// ClusterRoleBinding declares rbac.authorization.k8s.io/v1 ClusterRoleBinding.
func ClusterRoleBinding() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ClusterRoleBinding", Resource: "clusterrolebindings", NoGeneration: true, AllowCreateOnUpdate: true,
		ValidName:      path.ValidatePathSegmentName,
		Default:        kind.Each(func(b *rbacv1.ClusterRoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) }),
		Validate:       kind.Check(validateClusterRoleBinding),
		ValidateUpdate: kind.CheckChange(validateClusterRoleBindingUpdate),
		Columns:        bindingColumns(),
		Row: kind.RowOf(func(b *rbacv1.ClusterRoleBinding, now time.Time) []any {
			return bindingRow(b.Name, b.RoleRef, b.Subjects, columns.Created(b, now))
		}),
	}
}

// defaultBinding gives role and subjects their API groups.
func defaultBinding(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	if ref.APIGroup == "" {
		ref.APIGroup = group
	}
	for i := range subjects {
		s := &subjects[i]
		if s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = group
		}
	}
}

func bindingColumns() []columns.Column {
	return append(columns.Named(columns.Text("Role", "The role that is given."), columns.Age()), columns.Wide(
		columns.Text("Users", "Users who have it."),
		columns.Text("Groups", "Groups that have it."),
		columns.Text("ServiceAccounts", "Service accounts that have it."),
	)...)
}

func bindingRow(name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject, age string) []any {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []any{name, fmt.Sprintf("%s/%s", ref.Kind, ref.Name), age,
		strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", ")}
}
