// Package policies applies the admission policies that users write in CEL: the
// mutating ones, then the validating ones. A policy does something where it is
// bound: each binding may narrow what it applies to and names its parameters.
//
//	write -> index (which policies?) -> labels -> bindings -> parameters ->
//	match conditions -> expressions -> verdicts or patches
//
// See https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/
// and https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/
package policies

import (
	"fmt"
	"log/slog"
	"sync"

	celgo "github.com/google/cel-go/cel"
	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"knarr.dev/knarr/api/expression"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/registry"
)

// Config is what the policies' steps need. The functions must work by the time of
// the first write.
type Config struct {
	// Lookup reads an object from the caches; nil if it does not exist.
	Lookup func(gvr schema.GroupVersionResource, namespace, name string) kind.Object
	// Each visits the objects of a resource in the caches, by name.
	Each func(gvr schema.GroupVersionResource, namespace string, visit func(kind.Object) bool)
	// Stamp rises with every change of a resource's objects, or of what is served.
	Stamp func(schema.GroupVersionResource) int64
	// Versions lists a resource's versions, itself first.
	Versions func(*registry.Resource) []*registry.Resource
	// Kind finds the resource of a kind; nil if it is not served.
	Kind func(schema.GroupVersionKind) *registry.Resource
	// Types is how objects of a resource are merged.
	Types func(*registry.Resource) (managedfields.TypeConverter, error)
	// Authorize answers expressions that ask what the user may do.
	Authorize match.Authorizer
	Log       *slog.Logger
}

var (
	namespacesGVR = corev1.SchemeGroupVersion.WithResource("namespaces")

	validatingPolicies = admv1.SchemeGroupVersion.WithResource("validatingadmissionpolicies")
	validatingBindings = admv1.SchemeGroupVersion.WithResource("validatingadmissionpolicybindings")
	mutatingPolicies   = admv1.SchemeGroupVersion.WithResource("mutatingadmissionpolicies")
	mutatingBindings   = admv1.SchemeGroupVersion.WithResource("mutatingadmissionpolicybindings")
)

// policy is one revision of a policy with its bindings; E is what its expressions
// compile to.
type policy[E any] struct {
	name, revision string
	constraints    *match.Constraints
	ignore         bool // failures let the request pass
	paramKind      *admv1.ParamKind
	reinvoke       bool
	expressions    *compiled[E]
	bindings       []*binding
}

// compiled is compiled once for a revision of a policy, when it is first needed.
type compiled[E any] struct {
	compile    func() (E, error)
	once       sync.Once
	evaluators E
	err        error
}

func (c *compiled[E]) get() (E, error) {
	c.once.Do(func() { c.evaluators, c.err = c.compile() })
	return c.evaluators, c.err
}

// Match implements match.Entry.
func (p *policy[E]) Match() *match.Constraints { return p.constraints }

type binding struct {
	name        string
	constraints *match.Constraints // nil: all that the policy matches
	broken      error
	param       *admv1.ParamRef
	actions     []admv1.ValidationAction
}

func newBinding(name string, m *admv1.MatchResources, param *admv1.ParamRef, actions []admv1.ValidationAction) *binding {
	b := &binding{name: name, param: param, actions: actions}
	if m != nil {
		b.constraints, b.broken = constraintsOf(m)
	}
	return b
}

func constraintsOf(m *admv1.MatchResources) (*match.Constraints, error) {
	return match.New(m.ResourceRules, m.ExcludeResourceRules, m.MatchPolicy, m.NamespaceSelector, m.ObjectSelector)
}

// source reads the policies and the bindings of one sort.
type source[E any] struct {
	policies, bindings schema.GroupVersionResource
	policy             func(kind.Object) *policy[E]
	binding            func(kind.Object) (policyName string, b *binding)
}

func (s source[E]) index(c Config) *match.Index[*policy[E]] {
	return &match.Index[*policy[E]]{
		Stamp:    func() int64 { return c.Stamp(s.policies) + c.Stamp(s.bindings) },
		Versions: c.Versions,
		Load: func(previous []*policy[E]) (out []*policy[E]) {
			known := map[string]*policy[E]{}
			for _, p := range previous {
				known[p.name] = p
			}
			bound := map[string][]*binding{}
			c.Each(s.bindings, "", func(o kind.Object) bool {
				name, b := s.binding(o)
				bound[name] = append(bound[name], b)
				return true
			})
			c.Each(s.policies, "", func(o kind.Object) bool {
				if len(bound[o.GetName()]) == 0 {
					return true
				}
				p := s.policy(o)
				if k := known[p.name]; k != nil && k.revision == p.revision {
					p.expressions = k.expressions
				}
				p.bindings = bound[p.name]
				out = append(out, p)
				return true
			})
			return out
		},
	}
}

// newPolicy makes a policy from what both sorts have.
func newPolicy[E any](o kind.Object, m *admv1.MatchResources, failure *admv1.FailurePolicyType, param *admv1.ParamKind, compile func() (E, error)) *policy[E] {
	p := &policy[E]{
		name: o.GetName(), revision: o.GetResourceVersion(), constraints: match.Nothing(),
		ignore: failure != nil && *failure == admv1.Ignore, paramKind: param, expressions: &compiled[E]{compile: compile},
	}
	if m != nil && len(m.ResourceRules) > 0 {
		if c, err := constraintsOf(m); err == nil { // selectors have been validated
			p.constraints = c
		}
	}
	return p
}

// compiler returns a compiler that knows a policy's variables, and the policy's
// compiled match conditions, nil if it has none.
func compiler(variables []admv1.Variable, conditions []admv1.MatchCondition, params bool) (*plugincel.CompositedCompiler, plugincel.ConditionEvaluator, error) {
	c, err := expression.Composited()
	if err != nil {
		return nil, nil, fmt.Errorf("failed to initialize CEL compiler: %w", err)
	}
	options := expression.Options(params, true)
	for _, v := range variables {
		c.CompileAndStoreVariable(&expression.Expression{Name: v.Name, Text: v.Expression, Returns: []*celgo.Type{celgo.AnyType, celgo.DynType}}, options, environment.StoredExpressions)
	}
	if len(conditions) == 0 {
		return c, nil, nil
	}
	var list []plugincel.ExpressionAccessor
	for _, m := range conditions {
		list = append(list, &expression.Expression{Name: m.Name, Text: m.Expression, Returns: []*celgo.Type{celgo.BoolType}})
	}
	return c, c.CompileCondition(list, options, environment.StoredExpressions), nil
}
