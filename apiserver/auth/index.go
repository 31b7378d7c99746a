package auth

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// index finds a subject's rules without a look at every binding. It is immutable.
type index struct {
	generation int64
	rules      map[subject][][]rbacv1.PolicyRule
}

// subject is a user or group within a namespace, "" for the whole cluster.
type subject struct {
	namespace, name string
	group           bool
}

func buildIndex(roles Roles, generation int64) *index {
	x := &index{generation: generation, rules: map[subject][][]rbacv1.PolicyRule{}}
	roles.ClusterRoleBindings(func(b *rbacv1.ClusterRoleBinding) bool {
		if role, ok := roles.ClusterRole(b.RoleRef.Name); ok {
			x.add("", b.Subjects, role.Rules)
		}
		return true
	})
	roles.RoleBindings(func(b *rbacv1.RoleBinding) bool {
		if b.RoleRef.Kind == "ClusterRole" {
			if role, ok := roles.ClusterRole(b.RoleRef.Name); ok {
				x.add(b.Namespace, b.Subjects, role.Rules)
			}
		} else if role, ok := roles.Role(b.Namespace, b.RoleRef.Name); ok {
			x.add(b.Namespace, b.Subjects, role.Rules)
		}
		return true
	})
	return x
}

func (x *index) add(namespace string, subjects []rbacv1.Subject, rules []rbacv1.PolicyRule) {
	for i := range subjects {
		s := &subjects[i]
		key := subject{namespace: namespace, name: s.Name}
		switch s.Kind {
		case rbacv1.UserKind:
		case rbacv1.GroupKind:
			key.group = true
		case rbacv1.ServiceAccountKind:
			ns := s.Namespace
			if ns == "" {
				ns = namespace
			}
			if ns == "" {
				continue
			}
			key.name = UserServiceAccount + ns + ":" + s.Name
		default:
			continue
		}
		x.rules[key] = append(x.rules[key], rules)
	}
}

// visit shows a user's rules in exactly this namespace; false if visit ended it.
func (x *index) visit(namespace string, user *authenticationv1.UserInfo, visit func([]rbacv1.PolicyRule) bool) bool {
	show := func(key subject) bool {
		for _, rules := range x.rules[key] {
			if !visit(rules) {
				return false
			}
		}
		return true
	}
	if !show(subject{namespace: namespace, name: user.Username}) {
		return false
	}
	for _, g := range user.Groups {
		if !show(subject{namespace: namespace, name: g, group: true}) {
			return false
		}
	}
	return true
}
