// Package typecheck writes into the status of each validating admission policy
// where its expressions do not fit the types that it is for. The warnings help
// who writes policies; they change nothing of what a policy does.
//
// See https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/#type-checking
package typecheck

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	admv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/openapi"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Checker checks the policies of a registry.
type Checker struct {
	reg      *registry.Registry
	policies *registry.Resource
	log      *slog.Logger
}

// New returns a checker; Run does the work.
func New(reg *registry.Registry, log *slog.Logger) *Checker {
	return &Checker{reg: reg, policies: reg.Resource(admv1.SchemeGroupVersion.WithResource("validatingadmissionpolicies")), log: log}
}

// Run follows the policies until ctx ends.
func (c *Checker) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		s, w := c.policies.Cache.SnapshotAndWatch()
		var all []*admv1.ValidatingAdmissionPolicy
		s.Ascend("", "", func(i *watchcache.Item) bool {
			all = append(all, i.Object.(*admv1.ValidatingAdmissionPolicy))
			return true
		})
		for _, p := range all {
			c.one(ctx, p)
		}
		for {
			events, err := w.Next(ctx)
			if err != nil {
				break // ended, or too slow: look at all again
			}
			for _, e := range events {
				if e.Type != watchcache.Deleted {
					c.one(ctx, e.Item.Object.(*admv1.ValidatingAdmissionPolicy))
				}
			}
		}
		w.Stop()
	}
	return nil
}

// one brings the status of one policy up to date.
func (c *Checker) one(ctx context.Context, p *admv1.ValidatingAdmissionPolicy) {
	if p.Status.ObservedGeneration == p.Generation && p.Status.TypeChecking != nil {
		return
	}
	next := p.DeepCopy()
	next.Status.TypeChecking = &admv1.TypeChecking{ExpressionWarnings: c.check(p)}
	next.Status.ObservedGeneration = p.Generation
	if equality.Semantic.DeepEqual(p.Status, next.Status) {
		return
	}
	q := registry.Request{User: auth.Component("system:apiserver", auth.GroupMasters), Resource: c.policies, Name: p.Name, Subresource: "status"}
	// After a conflict, the change brings the policy again.
	if _, _, err := c.reg.Update(ctx, q, next); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		c.log.Warn("write the type check of a validating admission policy", "name", p.Name, "error", err)
	}
}

// schema describes a kind as OpenAPI does, without references.
func (c *Checker) schema(gvk schema.GroupVersionKind) (*spec.Schema, error) {
	const prefix = "#/components/schemas/"
	for _, res := range c.reg.Resources() {
		if res.GVK() != gvk {
			continue
		}
		models := openapi.V3(gvk.GroupVersion(), []openapi.Served{{Kind: res.Kind}}).Components.Schemas
		for name, m := range models {
			if describes(m, gvk) {
				return resolver.PopulateRefs(func(ref string) (*spec.Schema, bool) {
					m, ok := models[strings.TrimPrefix(ref, prefix)]
					return m, ok
				}, prefix+name)
			}
		}
	}
	return nil, fmt.Errorf("%s: %w", gvk, resolver.ErrSchemaNotFound)
}

func describes(m *spec.Schema, gvk schema.GroupVersionKind) bool {
	list, _ := m.Extensions["x-kubernetes-group-version-kind"].([]any)
	for _, v := range list {
		if is, ok := v.(map[string]any); ok && is["group"] == gvk.Group && is["version"] == gvk.Version && is["kind"] == gvk.Kind {
			return true
		}
	}
	return false
}
