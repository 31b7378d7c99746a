package auth

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

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
	// FieldSelector and LabelSelector are those of a list, a watch or a deletion of
	// many.
	FieldSelector, LabelSelector string

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
	RoleBindings(visit func(*rbacv1.RoleBinding) bool) // of all namespaces
	ClusterRole(name string) (*rbacv1.ClusterRole, bool)
	Role(namespace, name string) (*rbacv1.Role, bool)
	// Generation changes whenever one of these objects changes.
	Generation() int64
}

// RBAC decides by roles and bindings, as rbac.authorization.k8s.io defines.
type RBAC struct {
	Roles Roles

	mu    sync.Mutex // held by who builds the index
	index atomic.Pointer[index]
}

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
	idx := r.current()
	if !idx.visit("", user, visit) || namespace == "" {
		return
	}
	idx.visit(namespace, user, visit)
}

// current returns the index of the roles as they are now.
func (r *RBAC) current() *index {
	gen := r.Roles.Generation()
	if idx := r.index.Load(); idx != nil && idx.generation == gen {
		return idx
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// The generation is read before the objects: an index is at least as new as
	// it says, and one that is newer is only built once more.
	gen = r.Roles.Generation()
	if idx := r.index.Load(); idx != nil && idx.generation == gen {
		return idx
	}
	idx := buildIndex(r.Roles, gen)
	r.index.Store(idx)
	return idx
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
