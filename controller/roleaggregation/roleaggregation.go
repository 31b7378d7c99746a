// Package roleaggregation fills ClusterRoles that have an aggregationRule with
// the rules of all ClusterRoles that the rule selects.
package roleaggregation

import (
	"context"
	"fmt"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

var clusterRoles = rbacv1.SchemeGroupVersion.WithResource("clusterroles")

// New declares the controller. Keys are aggregated roles; any role's change may
// concern any of them.
func New() engine.Controller {
	return engine.Controller{
		Name:    "clusterrole-aggregation-controller",
		Watches: []engine.Watch{{Resource: clusterRoles, Keys: aggregated}},
		Writes:  []engine.Write{{Resource: clusterRoles, Verbs: []string{"update", "escalate"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				return 0, reconcile(ctx, env, key.Name)
			}
		},
	}
}

func aggregated(env *engine.Env, _ client.Event) []engine.Key {
	var out []engine.Key
	for _, r := range client.ListCached[*rbacv1.ClusterRole](env.Cache(clusterRoles), "", nil) {
		if r.AggregationRule != nil {
			out = append(out, engine.Key{Name: r.Name})
		}
	}
	return out
}

func reconcile(ctx context.Context, env *engine.Env, name string) error {
	cache := env.Cache(clusterRoles)
	role, ok := client.Cached[*rbacv1.ClusterRole](cache, "", name)
	if !ok || role.AggregationRule == nil {
		return nil
	}
	rules, err := Aggregate(role, client.ListCached[*rbacv1.ClusterRole](cache, "", nil))
	if err != nil {
		return fmt.Errorf("cluster role %s: %w", name, err)
	}
	if equality.Semantic.DeepEqual(rules, role.Rules) {
		return nil
	}
	next := role.DeepCopy()
	next.Rules = rules
	_, err = env.Client.Update(ctx, client.Key{Resource: clusterRoles, Name: name}, next)
	return err
}

// Aggregate joins the rules of the roles that role's selectors choose, in the
// order of selectors and names, each rule once.
func Aggregate(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *rbacv1.ClusterRole) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	var out []rbacv1.PolicyRule
	for i := range role.AggregationRule.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, fmt.Errorf("aggregationRule.clusterRoleSelectors[%d]: %w", i, err)
		}
		for _, r := range all {
			if r.Name == role.Name || !sel.Matches(labels.Set(r.Labels)) {
				continue
			}
			for _, rule := range r.Rules {
				if !slices.ContainsFunc(out, func(x rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(x, rule) }) {
					out = append(out, rule)
				}
			}
		}
	}
	return out, nil
}
