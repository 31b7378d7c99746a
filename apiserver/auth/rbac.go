package auth

import (
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// Action is what a user wants to do.
type Action struct {
	User *authenticationv1.UserInfo
	Verb string

	// Of a resource request:
	Group, Version, Resource, Subresource string
	Namespace, Name                       string

	// Of any other request:
	Path string
}

// IsResource tells a resource request from one for a plain path.
func (a *Action) IsResource() bool { return a.Path == "" }

// Forbidden is the message that explains a refusal, in Kubernetes' words.
func (a *Action) Forbidden() string {
	if !a.IsResource() {
		return fmt.Sprintf("User %q cannot %s path %q", a.User.Username, a.Verb, a.Path)
	}
	res := a.Resource
	if a.Subresource != "" {
		res += "/" + a.Subresource
	}
	msg := fmt.Sprintf("User %q cannot %s resource %q in API group %q", a.User.Username, a.Verb, res, a.Group)
	if a.Namespace != "" {
		return msg + fmt.Sprintf(" in the namespace %q", a.Namespace)
	}
	return msg + " at the cluster scope"
}

// Roles gives RBAC its objects.
type Roles interface {
	ClusterRoleBindings(visit func(*rbacv1.ClusterRoleBinding) bool)
	RoleBindings(namespace string, visit func(*rbacv1.RoleBinding) bool)
	ClusterRole(name string) (*rbacv1.ClusterRole, bool)
	Role(namespace, name string) (*rbacv1.Role, bool)
}

// RBAC decides by roles and bindings, as rbac.authorization.k8s.io defines.
type RBAC struct{ Roles Roles }

// Allowed tells whether a role of the user permits the action. Members of
// system:masters may do everything.
func (r *RBAC) Allowed(a *Action) bool {
	if slices.Contains(a.User.Groups, GroupMasters) {
		return true
	}
	allowed := false
	r.Visit(a.User, a.Namespace, func(rules []rbacv1.PolicyRule) bool {
		allowed = slices.ContainsFunc(rules, func(rule rbacv1.PolicyRule) bool { return Permits(&rule, a) })
		return !allowed
	})
	return allowed
}

// Visit shows the rules that a user has in a namespace ("" for the whole
// cluster) until visit returns false.
func (r *RBAC) Visit(user *authenticationv1.UserInfo, namespace string, visit func([]rbacv1.PolicyRule) bool) {
	more := true
	r.Roles.ClusterRoleBindings(func(b *rbacv1.ClusterRoleBinding) bool {
		if anySubject(b.Subjects, user, "") {
			if role, ok := r.Roles.ClusterRole(b.RoleRef.Name); ok {
				more = visit(role.Rules)
			}
		}
		return more
	})
	if !more || namespace == "" {
		return
	}
	r.Roles.RoleBindings(namespace, func(b *rbacv1.RoleBinding) bool {
		if !anySubject(b.Subjects, user, namespace) {
			return true
		}
		if b.RoleRef.Kind == "ClusterRole" {
			if role, ok := r.Roles.ClusterRole(b.RoleRef.Name); ok {
				return visit(role.Rules)
			}
		} else if role, ok := r.Roles.Role(namespace, b.RoleRef.Name); ok {
			return visit(role.Rules)
		}
		return true
	})
}

func anySubject(subjects []rbacv1.Subject, user *authenticationv1.UserInfo, namespace string) bool {
	for i := range subjects {
		s := &subjects[i]
		switch s.Kind {
		case rbacv1.UserKind:
			if s.Name == user.Username {
				return true
			}
		case rbacv1.GroupKind:
			if slices.Contains(user.Groups, s.Name) {
				return true
			}
		case rbacv1.ServiceAccountKind:
			ns := s.Namespace
			if ns == "" {
				ns = namespace
			}
			if ns != "" && user.Username == UserServiceAccount+ns+":"+s.Name {
				return true
			}
		}
	}
	return false
}

// Permits tells whether one rule permits the action.
func Permits(rule *rbacv1.PolicyRule, a *Action) bool {
	if !matches(rule.Verbs, a.Verb) {
		return false
	}
	if !a.IsResource() {
		return slices.ContainsFunc(rule.NonResourceURLs, func(u string) bool {
			if prefix, ok := strings.CutSuffix(u, "*"); ok {
				return strings.HasPrefix(a.Path, prefix)
			}
			return u == a.Path
		})
	}
	if !matches(rule.APIGroups, a.Group) {
		return false
	}
	if len(rule.ResourceNames) > 0 && !slices.Contains(rule.ResourceNames, a.Name) {
		return false
	}
	return slices.ContainsFunc(rule.Resources, func(r string) bool {
		if r == rbacv1.ResourceAll {
			return true
		}
		if a.Subresource == "" {
			return r == a.Resource
		}
		return r == a.Resource+"/"+a.Subresource || r == "*/"+a.Subresource
	})
}

func matches(list []string, value string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, value)
}
