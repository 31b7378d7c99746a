package policies

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	celgo "github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admission/v1"
	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"knarr.dev/knarr/api/expression"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/admission/match"
	"knarr.dev/knarr/apiserver/registry"
)

// checks are the compiled expressions of a validating policy.
type checks struct {
	validations                       []admv1.Validation
	audit                             []admv1.AuditAnnotation
	conditions                        plugincel.ConditionEvaluator // nil: none
	expressions, messages, auditValue plugincel.ConditionEvaluator
}

func compileChecks(s *admv1.ValidatingAdmissionPolicySpec) (*checks, error) {
	params := s.ParamKind != nil
	c, conditions, err := compiler(s.Variables, s.MatchConditions, params)
	if err != nil {
		return nil, err
	}
	out := &checks{validations: s.Validations, audit: s.AuditAnnotations, conditions: conditions}
	var exprs, messages, audit []plugincel.ExpressionAccessor
	for _, v := range s.Validations {
		exprs = append(exprs, expression.Of(v.Expression, celgo.BoolType))
		var m plugincel.ExpressionAccessor // nil: none, but it keeps its place
		if v.MessageExpression != "" {
			m = expression.Of(v.MessageExpression, celgo.StringType)
		}
		messages = append(messages, m)
	}
	for _, a := range s.AuditAnnotations {
		audit = append(audit, expression.Of(a.ValueExpression, celgo.StringType, celgo.NullType))
	}
	out.expressions = c.CompileCondition(exprs, expression.Options(params, true), environment.StoredExpressions)
	out.auditValue = c.CompileCondition(audit, expression.Options(params, true), environment.StoredExpressions)
	out.messages = c.CompileCondition(messages, expression.Options(params, false), environment.StoredExpressions)
	return out, nil
}

// Validating is the step ValidatingAdmissionPolicy.
func Validating(c Config) registry.Admission {
	src := source[*checks]{
		policies: validatingPolicies, bindings: validatingBindings,
		policy: func(o kind.Object) *policy[*checks] {
			s := &o.(*admv1.ValidatingAdmissionPolicy).Spec
			return newPolicy(o, s.MatchConstraints, s.FailurePolicy, s.ParamKind, func() (*checks, error) { return compileChecks(s) })
		},
		binding: func(o kind.Object) (string, *binding) {
			b := o.(*admv1.ValidatingAdmissionPolicyBinding)
			return b.Spec.PolicyName, newBinding(b.Name, b.Spec.MatchResources, b.Spec.ParamRef, b.Spec.ValidationActions)
		},
	}
	v := &validating{Config: c, index: src.index(c)}
	return registry.Admission{Name: "ValidatingAdmissionPolicy", Validate: v.validate}
}

type validating struct {
	Config
	index *match.Index[*policy[*checks]]
}

// denial is why a bound policy refuses a request.
type denial struct {
	policy, binding string
	message         string
	reason          metav1.StatusReason
}

func (v *validating) validate(ctx context.Context, a *registry.Attributes) error {
	hits := v.index.Find(a)
	if hits == nil {
		return nil
	}
	labels := match.NamespaceLabels(v.Lookup)
	var denials []denial
	for _, hit := range hits.List {
		p := hit.Entry
		failed := func(binding string, err error) {
			if !p.ignore {
				denials = append(denials, denial{policy: p.name, binding: binding, message: err.Error()})
			}
		}
		ok, err := p.constraints.Object(a, hits.Versions, labels)
		if err != nil {
			failed("", fmt.Errorf("failed to configure policy: %w", err))
		}
		if !ok {
			continue
		}
		attrs, err := match.Versioned(ctx, a, hit.Resource)
		if err != nil {
			return fmt.Errorf("failed to convert object version: %w", err)
		}
		for _, b := range p.bindings {
			ok, err := b.matches(a, hits.Versions, labels)
			var params []runtime.Object
			if ok && err == nil {
				params, err = v.params(ctx, p.paramKind, b.param, a)
			}
			if err != nil {
				failed(b.name, fmt.Errorf("failed to configure binding: %w", err))
				continue
			}
			if !ok {
				continue
			}
			ns, err := v.namespace(a)
			if err != nil {
				return err
			}
			for _, param := range params {
				denials = append(denials, v.evaluate(ctx, a, hit, b, attrs, param, ns)...)
			}
		}
	}
	if len(denials) == 0 {
		return nil
	}
	return denials[0].status(a)
}

func (b *binding) matches(a *registry.Attributes, versions []*registry.Resource, of match.Labels) (bool, error) {
	if b.broken != nil || b.constraints == nil {
		return b.broken == nil, b.broken
	}
	q := match.Query{Resource: a.Requested, Subresource: a.Subresource, Operation: a.Operation}
	if b.constraints.Version(q, versions, nil) == nil {
		return false, nil
	}
	return b.constraints.Object(a, versions, of)
}

func (d denial) status(a *registry.Attributes) error {
	message := fmt.Sprintf("ValidatingAdmissionPolicy '%s' denied request: %s", d.policy, d.message)
	if d.binding != "" {
		message = fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", d.policy, d.binding, d.message)
	}
	err := forbidden(a, message)
	if err.ErrStatus.Reason = d.reason; d.reason == "" {
		err.ErrStatus.Reason = metav1.StatusReasonInvalid
	}
	switch err.ErrStatus.Reason {
	case metav1.StatusReasonForbidden:
		err.ErrStatus.Code = http.StatusForbidden
	case metav1.StatusReasonUnauthorized:
		err.ErrStatus.Code = http.StatusUnauthorized
	case metav1.StatusReasonRequestEntityTooLarge:
		err.ErrStatus.Code = http.StatusRequestEntityTooLarge
	default:
		err.ErrStatus.Code = http.StatusUnprocessableEntity
	}
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	return err
}

// failureKey is the audit annotation that tells which validations failed.
const failureKey = "validation.policy.admission.k8s.io/validation_failure"

// evaluate applies a bound policy with one parameter: it warns and notes what its
// binding asks for, and returns the refusals.
func (v *validating) evaluate(ctx context.Context, a *registry.Attributes, hit match.Hit[*policy[*checks]], b *binding,
	attrs *admission.VersionedAttributes, param runtime.Object, ns *corev1.Namespace) (denials []denial) {
	p := hit.Entry
	in := &input{
		attrs: attrs, param: param, namespace: plugincel.CreateNamespaceObject(ns), authorize: v.Authorize,
		request: plugincel.CreateAdmissionRequest(attrs.Attributes, metav1.GroupVersionResource(hit.Resource.GVR()), metav1.GroupVersionKind(attrs.VersionedKind)),
	}
	for i, d := range decide(ctx, p, a, in) {
		if d == nil {
			continue
		}
		d.policy, d.binding = p.name, b.name
		for _, action := range b.actions {
			switch action {
			case admv1.Deny:
				denials = append(denials, *d)
			case admv1.Warn:
				a.Warn(fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", p.name, b.name, d.message))
			case admv1.Audit:
				a.Audit(failureKey, d.note(i, b.actions))
			}
		}
	}
	return denials
}

// note is a refusal as the audit log has it.
func (d *denial) note(expression int, actions []admv1.ValidationAction) string {
	b, err := json.Marshal([]struct {
		Message           string                   `json:"message"`
		Policy            string                   `json:"policy"`
		Binding           string                   `json:"binding"`
		ExpressionIndex   int                      `json:"expressionIndex"`
		ValidationActions []admv1.ValidationAction `json:"validationActions"`
	}{{d.message, d.policy, d.binding, expression, actions}})
	if err != nil {
		return err.Error() // plain strings always encode
	}
	return string(b)
}

// input is what expressions are evaluated on.
type input struct {
	attrs     *admission.VersionedAttributes
	request   *admissionv1.AdmissionRequest
	param     runtime.Object
	namespace *corev1.Namespace
	authorize match.Authorizer
}

func (in *input) run(ctx context.Context, e plugincel.ConditionEvaluator, authorizer bool, budget int64) ([]plugincel.EvaluationResult, int64, error) {
	vars := plugincel.OptionalVariableBindings{VersionedParams: in.param}
	if authorizer {
		vars.Authorizer = in.authorize
	}
	return e.ForInput(ctx, in.attrs, in.request, vars, in.namespace, budget)
}

// failure is the refusal by a policy that cannot be evaluated; nil if its failure
// policy lets the request pass.
func (p *policy[E]) failure(err error) *denial {
	if p.ignore {
		return nil
	}
	return &denial{message: err.Error()}
}

// decide returns for each validation why it refuses, or nil, and after them what
// else went wrong.
func decide(ctx context.Context, p *policy[*checks], a *registry.Attributes, in *input) []*denial {
	c, err := p.expressions.get()
	if err != nil {
		return []*denial{p.failure(err)}
	}
	if c.conditions != nil {
		ok, err := match.Conditions(ctx, c.conditions, in.attrs, in.param, in.authorize)
		if err != nil {
			return []*denial{p.failure(err)}
		}
		if !ok {
			return nil
		}
	}
	results, budget, err := in.run(ctx, c.expressions, true, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return []*denial{p.failure(err)}
	}
	messages, _, messagesErr := in.run(ctx, c.messages, false, budget)
	out := make([]*denial, len(results))
	for i, r := range results {
		switch val := &c.validations[i]; {
		case r.Error != nil:
			out[i] = p.failure(r.Error)
		case errors.Is(messagesErr, cel.ErrInternal), errors.Is(messagesErr, cel.ErrOutOfBudget):
			out[i] = p.failure(fmt.Errorf("failed messageExpression: %w", messagesErr))
		case r.EvalResult != celtypes.True:
			d := &denial{message: messageOf(val, at(messages, i)), reason: metav1.StatusReasonInvalid}
			if val.Reason != nil {
				d.reason = *val.Reason
			}
			out[i] = d
		}
	}
	return append(out, annotate(ctx, p, c, a, in)...)
}

// maxAnnotation is the length in bytes at which an audit annotation is cut.
const maxAnnotation = 10 << 10

// annotate writes the policy's audit annotations and returns those that fail.
func annotate(ctx context.Context, p *policy[*checks], c *checks, a *registry.Attributes, in *input) (out []*denial) {
	if len(c.audit) == 0 {
		return nil
	}
	results, _, err := in.run(ctx, c.auditValue, true, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return []*denial{p.failure(err)}
	}
	for i, r := range results {
		if r.Error != nil {
			out = append(out, p.failure(r.Error))
			continue
		}
		text, ok := r.EvalResult.Value().(string)
		if text = strings.TrimSpace(text); ok && text != "" {
			a.Audit(p.name+"/"+c.audit[i].Key, text[:min(len(text), maxAnnotation)])
		}
	}
	return out
}

func at(list []plugincel.EvaluationResult, i int) *plugincel.EvaluationResult {
	if i < len(list) {
		return &list[i]
	}
	return nil
}

// messageOf is what a refused validation says: its message expression's result,
// else its message, else the expression itself.
func messageOf(v *admv1.Validation, r *plugincel.EvaluationResult) string {
	if r != nil && r.Error == nil && r.EvalResult != nil {
		if text, ok := r.EvalResult.Value().(string); ok {
			text = strings.TrimSpace(text)
			if text != "" && len(text) <= celconfig.MaxEvaluatedMessageExpressionSizeBytes && !strings.Contains(text, "\n") {
				return text
			}
		}
	}
	if text := strings.TrimSpace(v.Message); text != "" {
		return text
	}
	return "failed expression: " + strings.TrimSpace(v.Expression)
}
