package auth

import (
	"context"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// Decision is what an authorizer thinks of an action.
type Decision int

// The decisions. Denied ends the matter; after NoOpinion the next authorizer is
// asked.
const (
	NoOpinion Decision = iota
	Permitted
	Denied
)

// Authorizer decides on actions. The reason explains a refusal to its user.
type Authorizer interface {
	Authorize(ctx context.Context, a *Action) (d Decision, reason string)
}

// Chain asks authorizers in order: the first that has an opinion decides, and
// what nobody permits is forbidden. Members of system:masters may do everything.
type Chain struct {
	// RBAC lists the rules of users; it is asked if Steps has it.
	RBAC *RBAC
	// Steps are asked in order.
	Steps []Authorizer
	// Context ends when the server does. Questions that do not belong to a request
	// are asked in it.
	Context context.Context
}

// NewChain returns a chain of the authorizers before RBAC, and RBAC.
func NewChain(ctx context.Context, rbac *RBAC, before ...Authorizer) *Chain {
	return &Chain{RBAC: rbac, Steps: append(slices.Clone(before), rbac), Context: ctx}
}

// Authorize implements Authorizer.
func (c *Chain) Authorize(ctx context.Context, a *Action) (Decision, string) {
	if slices.Contains(a.User.Groups, GroupMasters) {
		return Permitted, ""
	}
	var reasons []string
	for _, s := range c.Steps {
		d, reason := s.Authorize(ctx, a)
		if d != NoOpinion {
			return d, reason
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return NoOpinion, strings.Join(reasons, "\n")
}

// Allowed tells whether the action is permitted.
func (c *Chain) Allowed(a *Action) bool {
	d, _ := c.Authorize(c.Context, a)
	return d == Permitted
}

// Visit shows the rules that RBAC gives a user.
func (c *Chain) Visit(user *authenticationv1.UserInfo, namespace string, visit func([]rbacv1.PolicyRule) bool) {
	c.RBAC.Visit(user, namespace, visit)
}

// Authorize implements Authorizer.
func (r *RBAC) Authorize(_ context.Context, a *Action) (Decision, string) {
	if r.Allowed(a) {
		return Permitted, ""
	}
	return NoOpinion, ""
}
