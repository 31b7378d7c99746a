package policies

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/client-go/kubernetes/scheme"

	"knarr.dev/knarr/api/expression"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/registry"
)

// changes are the compiled expressions of a mutating policy.
type changes struct {
	conditions plugincel.ConditionEvaluator // nil: none
	patchers   []patch.Patcher
	compiler   *plugincel.CompositedCompiler
}

func compileChanges(s *admv1.MutatingAdmissionPolicySpec) (*changes, error) {
	params := s.ParamKind != nil
	c, conditions, err := compiler(s.Variables, s.MatchConditions, params)
	if err != nil {
		return nil, err
	}
	out := &changes{conditions: conditions, compiler: c}
	options := expression.Options(params, true)
	options.HasPatchTypes = true
	for _, m := range s.Mutations {
		switch {
		case m.PatchType == admv1.PatchTypeJSONPatch && m.JSONPatch != nil:
			e := c.CompileMutatingEvaluator(&patch.JSONPatchCondition{Expression: m.JSONPatch.Expression}, options, environment.StoredExpressions)
			out.patchers = append(out.patchers, patch.NewJSONPatcher(e))
		case m.PatchType == admv1.PatchTypeApplyConfiguration && m.ApplyConfiguration != nil:
			e := c.CompileMutatingEvaluator(&patch.ApplyConfigurationCondition{Expression: m.ApplyConfiguration.Expression}, options, environment.StoredExpressions)
			out.patchers = append(out.patchers, patch.NewApplyConfigurationPatcher(e))
		}
	}
	return out, nil
}

// Mutating is the step MutatingAdmissionPolicy.
func Mutating(c Config) registry.Admission {
	src := source[*changes]{
		policies: mutatingPolicies, bindings: mutatingBindings,
		policy: func(o kind.Object) *policy[*changes] {
			s := &o.(*admv1.MutatingAdmissionPolicy).Spec
			p := newPolicy(o, s.MatchConstraints, s.FailurePolicy, s.ParamKind, func() (*changes, error) { return compileChanges(s) })
			p.reinvoke = s.ReinvocationPolicy == admv1.IfNeededReinvocationPolicy
			return p
		},
		binding: func(o kind.Object) (string, *binding) {
			b := o.(*admv1.MutatingAdmissionPolicyBinding)
			return b.Spec.PolicyName, newBinding(b.Name, b.Spec.MatchResources, b.Spec.ParamRef, nil)
		},
	}
	m := &mutating{Config: c, index: src.index(c)}
	return registry.Admission{Name: stepName, Mutate: m.mutate}
}

const stepName = "MutatingAdmissionPolicy"

type mutating struct {
	Config
	index *match.Index[*policy[*changes]]
}

// invocation is a bound policy with one parameter.
type invocation struct {
	hit     match.Hit[*policy[*changes]]
	binding *binding
	param   runtime.Object
}

// key names the invocation in both rounds.
func (i *invocation) key() string {
	key := i.hit.Entry.name + "\n" + i.binding.name
	if m, err := meta.Accessor(i.param); i.param != nil && err == nil {
		key += "\n" + m.GetNamespace() + "/" + m.GetName()
	}
	return key
}

// mutate applies the matching policies one after the other. In the second round
// only those are applied that want it and whose object has changed since.
func (m *mutating) mutate(ctx context.Context, a *registry.Attributes) error {
	hits := m.index.Find(a)
	if hits == nil || a.Operation == registry.Delete {
		return nil
	}
	round := match.RoundOf(a, stepName)
	defer round.End(a)
	invocations, refusals := m.invocations(ctx, a, hits)
	ns, err := m.namespace(a)
	if err != nil {
		return err
	}
	for _, i := range invocations {
		if round.Skips(a, i.key()) {
			continue
		}
		changed, applied, err := m.apply(ctx, a, &i, ns)
		if err != nil {
			var status apierrors.APIStatus
			if errors.As(err, &status) {
				return err
			}
			refusals = append(refusals, refusal{i.hit.Entry, i.binding, err, metav1.StatusReasonInvalid})
		}
		if changed {
			round.Changed()
		}
		if applied && i.hit.Entry.reinvoke {
			round.Willing(i.key())
		}
	}
	return answer(a, refusals)
}

// refusal is why a policy could not be applied.
type refusal struct {
	policy  *policy[*changes]
	binding *binding // nil: the policy itself is at fault
	err     error
	reason  metav1.StatusReason
}

func (r *refusal) Error() string {
	if r.binding == nil {
		return fmt.Sprintf("policy %q denied request: %v", r.policy.name, r.err)
	}
	return fmt.Sprintf("policy '%s' with binding '%s' denied request: %v", r.policy.name, r.binding.name, r.err)
}

// answer is the answer to a request that met refusals of policies which may not
// fail; nil if there are none.
func answer(a *registry.Attributes, refusals []refusal) error {
	var out *apierrors.StatusError
	for _, r := range refusals {
		if r.policy.ignore {
			continue
		}
		if out == nil {
			out = forbidden(a, "admission request denied by policy")
			out.ErrStatus.Message = r.Error()
			if r.reason != "" {
				out.ErrStatus.Reason = r.reason
			}
		}
		out.ErrStatus.Details.Causes = append(out.ErrStatus.Details.Causes, metav1.StatusCause{Message: r.Error()})
	}
	if out == nil {
		return nil
	}
	return out
}

// invocations lists what is to be applied to a request.
func (m *mutating) invocations(ctx context.Context, a *registry.Attributes, hits *match.Hits[*policy[*changes]]) (out []invocation, refusals []refusal) {
	labels := match.NamespaceLabels(m.Lookup)
	for _, hit := range hits.List {
		p := hit.Entry
		ok, err := p.constraints.Object(a, hits.Versions, labels)
		if err != nil {
			refusals = append(refusals, refusal{policy: p, err: fmt.Errorf("failed to configure policy: %w", err)})
		}
		if !ok {
			continue
		}
		for _, b := range p.bindings {
			ok, err := b.matches(a, hits.Versions, labels)
			var params []runtime.Object
			if ok && err == nil {
				params, err = m.params(ctx, p.paramKind, b.param, a)
			}
			if err != nil {
				refusals = append(refusals, refusal{policy: p, binding: b, err: fmt.Errorf("failed to configure binding: %w", err)})
				continue
			}
			for _, param := range params {
				out = append(out, invocation{hit, b, param})
			}
		}
	}
	return out, refusals
}

// apply applies the mutations of one invocation, in order.
func (m *mutating) apply(ctx context.Context, a *registry.Attributes, i *invocation, ns *corev1.Namespace) (changed, applied bool, err error) {
	c, err := i.hit.Entry.expressions.get()
	if err != nil {
		return false, false, err
	}
	ctx = c.compiler.CreateContext(ctx)
	v, err := match.Versioned(ctx, a, i.hit.Resource)
	if err != nil {
		return false, false, apierrors.NewInternalError(err)
	}
	if c.conditions != nil {
		ok, err := match.Conditions(ctx, c.conditions, v, i.param, m.Authorize)
		if !ok || err != nil {
			return false, false, err
		}
	}
	if v.VersionedObject == nil {
		return false, true, nil
	}
	before := v.VersionedObject
	for _, p := range c.patchers {
		if err := m.patch(ctx, a, i, p, v, ns); err != nil {
			return false, true, err
		}
	}
	if equality.Semantic.DeepEqual(before, v.VersionedObject) {
		return false, true, nil
	}
	if !a.BodyKind.Empty() {
		a.ReplaceBody(v.VersionedObject)
		return true, true, nil
	}
	obj, err := a.Resource.Show(ctx, i.hit.Resource, v.VersionedObject.(kind.Object))
	if err != nil {
		return false, true, apierrors.NewInternalError(err)
	}
	a.Replace(obj)
	return true, true, nil
}

// patch makes one mutation on v.
func (m *mutating) patch(ctx context.Context, a *registry.Attributes, i *invocation, p patch.Patcher, v *admission.VersionedAttributes, ns *corev1.Namespace) error {
	types, err := m.Types(i.hit.Resource)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	out, err := p.Patch(ctx, patch.Request{
		MatchedResource: i.hit.Resource.GVR(), VersionedAttributes: v, ObjectInterfaces: admission.NewObjectInterfacesFromScheme(scheme.Scheme),
		OptionalVariables: plugincel.OptionalVariableBindings{VersionedParams: i.param, Authorizer: m.Authorize},
		Namespace:         plugincel.CreateNamespaceObject(ns), TypeConverter: types,
	}, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return err
	}
	b, err := json.Marshal(out)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if !a.BodyKind.Empty() {
		body := reflect.New(reflect.TypeOf(a.Body).Elem()).Interface().(runtime.Object)
		if err := json.Unmarshal(b, body); err != nil {
			return apierrors.NewInternalError(err)
		}
		v.VersionedObject = body
		return nil
	}
	obj, err := i.hit.Resource.Read(b)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	v.VersionedObject = obj
	return nil
}
