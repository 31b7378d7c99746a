// Package match decides which webhooks and policies a write concerns. What does
// not depend on the object is decided once for each resource and operation and
// remembered (Index), so that a write that concerns nobody costs one look-up.
package match

import (
	"fmt"
	"slices"
	"strings"

	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

// Constraints say which requests a webhook or a policy is for.
type Constraints struct {
	rules, exclude    []admv1.NamedRuleWithOperations
	exact             bool
	namespace, object labels.Selector // nil: all
	names             bool            // some rule names objects
}

// New compiles constraints.
func New(rules, exclude []admv1.NamedRuleWithOperations, policy *admv1.MatchPolicyType, namespace, object *metav1.LabelSelector) (*Constraints, error) {
	c := &Constraints{rules: rules, exclude: exclude, exact: policy != nil && *policy == admv1.Exact}
	named := func(r admv1.NamedRuleWithOperations) bool { return len(r.ResourceNames) > 0 }
	c.names = slices.ContainsFunc(rules, named) || slices.ContainsFunc(exclude, named)
	var err error
	if c.namespace, err = selector(namespace); err != nil {
		return nil, fmt.Errorf("namespaceSelector: %w", err)
	}
	if c.object, err = selector(object); err != nil {
		return nil, fmt.Errorf("objectSelector: %w", err)
	}
	return c, nil
}

// Unnamed turns a webhook's rules into rules for objects of any name.
func Unnamed(rules []admv1.RuleWithOperations) []admv1.NamedRuleWithOperations {
	out := make([]admv1.NamedRuleWithOperations, len(rules))
	for i, r := range rules {
		out[i].RuleWithOperations = r
	}
	return out
}

func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return nil, nil
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || sel.Empty() {
		return nil, err
	}
	return sel, nil
}

// Query is what the first decision depends on.
type Query struct {
	Resource    *registry.Resource // as the request named it
	Subresource string
	Operation   registry.Operation
}

// Version tells in which version of the resource a request concerns the owner of
// the constraints: the request's own, or with the match policy Equivalent another
// one that a rule names; nil: not at all. name is the object's; the decision
// without it is whether some object may be concerned.
func (c *Constraints) Version(q Query, versions []*registry.Resource, name *string) *registry.Resource {
	if excluded(c.exclude, q, versions, c.exact, name) {
		return nil
	}
	if len(c.rules) == 0 {
		return q.Resource
	}
	for _, v := range candidates(versions, c.exact) {
		if slices.ContainsFunc(c.rules, func(r admv1.NamedRuleWithOperations) bool { return covers(&r, q, v, name) }) {
			return v
		}
	}
	return nil
}

func excluded(rules []admv1.NamedRuleWithOperations, q Query, versions []*registry.Resource, exact bool, name *string) bool {
	for i := range rules {
		if name == nil && len(rules[i].ResourceNames) > 0 {
			continue // only some objects are excluded
		}
		for _, v := range candidates(versions, exact) {
			if covers(&rules[i], q, v, name) {
				return true
			}
		}
	}
	return false
}

func candidates(versions []*registry.Resource, exact bool) []*registry.Resource {
	if exact {
		return versions[:1]
	}
	return versions
}

const all = "*"

// covers tells whether a rule names an operation on version v of the resource.
func covers(r *admv1.NamedRuleWithOperations, q Query, v *registry.Resource, name *string) bool {
	if s := r.Scope; s != nil && *s != admv1.AllScopes && (*s == admv1.NamespacedScope) != v.Namespaced {
		return false
	}
	if !has(r.Operations, admv1.OperationType(q.Operation)) || !has(r.APIGroups, v.Group) || !has(r.APIVersions, v.Version) {
		return false
	}
	if name != nil && len(r.ResourceNames) > 0 && !slices.Contains(r.ResourceNames, *name) {
		return false
	}
	return slices.ContainsFunc(r.Resources, func(pattern string) bool {
		res, sub, _ := strings.Cut(pattern, "/")
		return (res == all || res == v.Resource) && (sub == all || sub == q.Subresource)
	})
}

func has[T ~string](list []T, v T) bool {
	return slices.Contains(list, v) || slices.Contains(list, all)
}

// Labels finds the labels of a namespace.
type Labels func(namespace string) (map[string]string, bool)

var namespaces = schema.GroupResource{Resource: "namespaces"}

// Object tells whether a request's object and namespace have the wanted names and
// labels. An error is the answer to the request: its namespace does not exist.
func (c *Constraints) Object(a *registry.Attributes, versions []*registry.Resource, of Labels) (bool, error) {
	if c.names {
		name := a.Name
		if c.Version(Query{a.Requested, a.Subresource, a.Operation}, versions, &name) == nil {
			return false, nil
		}
	}
	if c.object != nil && !c.selects(a.Object, a.Body) && !c.selects(a.Old, a.OldBody) {
		return false, nil
	}
	return c.inNamespace(a, of)
}

// selects tells whether there is an object, with the wanted labels.
func (c *Constraints) selects(o kind.Object, body runtime.Object) bool {
	if o != nil {
		return c.object.Matches(labels.Set(o.GetLabels()))
	}
	if body == nil {
		return false
	}
	m, err := meta.Accessor(body)
	return err == nil && c.object.Matches(labels.Set(m.GetLabels()))
}

func (c *Constraints) inNamespace(a *registry.Attributes, of Labels) (bool, error) {
	if c.namespace == nil {
		return true, nil
	}
	if a.Resource.GroupResource() == namespaces {
		if a.Object != nil && a.Subresource == "" && (a.Operation == registry.Create || a.Operation == registry.Update) {
			return c.namespace.Matches(labels.Set(a.Object.GetLabels())), nil
		}
		set, ok := of(a.Name)
		if !ok && a.Name != "" {
			return false, apierrors.NewNotFound(namespaces, a.Name)
		}
		return c.namespace.Matches(labels.Set(set)), nil
	}
	if a.Namespace == "" {
		return true, nil
	}
	set, ok := of(a.Namespace)
	if !ok {
		return false, apierrors.NewNotFound(namespaces, a.Namespace)
	}
	return c.namespace.Matches(labels.Set(set)), nil
}

// NamespaceOf is the namespace of a request as webhooks and expressions see it: of
// a namespace, that is its own name.
func NamespaceOf(a *registry.Attributes) string {
	if a.Resource.GroupResource() == namespaces {
		return a.Name
	}
	return a.Namespace
}

// Exempt tells the configurations of admission themselves: were they subject to
// it, a wrong one could not be removed.
func Exempt(res *registry.Resource) bool {
	if res.Group != admv1.GroupName {
		return false
	}
	switch res.Resource {
	case "validatingwebhookconfigurations", "mutatingwebhookconfigurations",
		"validatingadmissionpolicies", "validatingadmissionpolicybindings",
		"mutatingadmissionpolicies", "mutatingadmissionpolicybindings":
		return true
	}
	return false
}

// NamespaceLabels makes a Labels from a look-up of objects.
func NamespaceLabels(lookup func(schema.GroupVersionResource, string, string) kind.Object) Labels {
	gvr := corev1.SchemeGroupVersion.WithResource("namespaces")
	return func(name string) (map[string]string, bool) {
		o := lookup(gvr, "", name)
		if o == nil {
			return nil, false
		}
		return o.GetLabels(), true
	}
}

// Nothing returns constraints that no request meets.
func Nothing() *Constraints {
	return &Constraints{rules: []admv1.NamedRuleWithOperations{{}}}
}
