package admissionregistration

import (
	"regexp"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	admv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/expression"
)

const (
	maxAuditAnnotations = 20
	maxValueExpression  = 5 << 10 // bytes
)

var (
	// Object types that a mutation's expression returns.
	applyType = celtypes.NewObjectType("Object")
	patchType = celgo.ListType(celtypes.NewObjectType("JSONPatch"))

	reasons = []metav1.StatusReason{metav1.StatusReasonForbidden, metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge, metav1.StatusReasonUnauthorized}
)

// identifier is CEL's; reserved words would be read as something else.
var identifier = regexp.MustCompile(`^[_a-zA-Z][_a-zA-Z0-9]*$`)

var reserved = sets.New("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if",
	"import", "let", "loop", "package", "namespace", "return", "var", "void", "while")

func isIdentifier(name string) bool { return identifier.MatchString(name) && !reserved.Has(name) }

// policy checks the expressions of one policy, which may use its variables.
type policy struct {
	compiler plugincel.Compiler
	options  plugincel.OptionalVariableDeclarations
}

// newPolicy declares the variables, in order: each may use those before it.
func newPolicy(variables []admv1.Variable, params, patches bool) (*policy, check.Errors) {
	at := field.NewPath("spec", "variables")
	c, err := expression.Composited()
	if err != nil {
		return nil, check.Errors{field.InternalError(at, err)}
	}
	p := &policy{compiler: c, options: expression.Options(params, true)}
	p.options.HasPatchTypes = patches
	var errs check.Errors
	names := sets.New[string]()
	for i, v := range variables {
		i := at.Index(i)
		switch {
		case v.Name == "":
			errs = append(errs, field.Required(i.Child("name"), "name is not specified"))
		case !isIdentifier(v.Name):
			errs = append(errs, field.Invalid(i.Child("name"), v.Name, "must be a valid CEL identifier"))
		}
		names.Insert(v.Name)
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(i.Child("expression"), "expression is not specified"))
			continue
		}
		r := c.CompileAndStoreVariable(&expression.Expression{Name: v.Name, Text: v.Expression, Returns: []*celgo.Type{celgo.AnyType, celgo.DynType}}, p.options, environment.NewExpressions)
		errs = append(errs, expression.Errors(r, i.Child("expression"))...)
	}
	return p, errs
}

func (p *policy) check(text string, at *field.Path, returns ...*celgo.Type) check.Errors {
	return expression.CheckWith(p.compiler, expression.Of(text, returns...), p.options, at)
}

func validateValidatingPolicy(p *admv1.ValidatingAdmissionPolicy) check.Errors {
	at, s := field.NewPath("spec"), &p.Spec
	errs := validatePolicyFrame(s.ParamKind, s.MatchConstraints, s.FailurePolicy, allOperations)
	errs = append(errs, validateConditions(s.MatchConditions, s.ParamKind != nil, nil, at.Child("matchConditions"))...)
	cc, verrs := newPolicy(s.Variables, s.ParamKind != nil, false)
	errs = append(errs, verrs...)
	if cc == nil {
		return errs
	}
	if len(s.Validations) == 0 && len(s.AuditAnnotations) == 0 {
		const msg = "validations or auditAnnotations must contain at least one item"
		errs = append(errs, field.Required(at.Child("validations"), msg), field.Required(at.Child("auditAnnotations"), msg))
	}
	for i := range s.Validations {
		errs = append(errs, cc.validation(&s.Validations[i], at.Child("validations").Index(i))...)
	}
	return append(errs, cc.auditAnnotations(p.Name, s.AuditAnnotations, at.Child("auditAnnotations"))...)
}

func validateValidatingPolicyUpdate(p, old *admv1.ValidatingAdmissionPolicy) check.Errors {
	if check.Same(p.Spec, old.Spec) {
		return nil
	}
	return validateValidatingPolicy(p)
}

func validateValidatingPolicyStatus(p, _ *admv1.ValidatingAdmissionPolicy) (errs check.Errors) {
	at := field.NewPath("status")
	if t := p.Status.TypeChecking; t != nil {
		for i, w := range t.ExpressionWarnings {
			i := at.Child("typeChecking", "expressionWarnings").Index(i)
			if strings.TrimSpace(w.Warning) == "" {
				errs = append(errs, field.Required(i.Child("warning"), ""))
			}
			errs = append(errs, check.Required(i.Child("fieldRef"), w.FieldRef)...)
		}
	}
	return append(errs, metavalidation.ValidateConditions(p.Status.Conditions, at.Child("conditions"))...)
}

func validateMutatingPolicy(p *admv1.MutatingAdmissionPolicy) check.Errors {
	at, s := field.NewPath("spec"), &p.Spec
	errs := validatePolicyFrame(s.ParamKind, s.MatchConstraints, s.FailurePolicy, mutatedOperations)
	errs = append(errs, validateConditions(s.MatchConditions, s.ParamKind != nil, nil, at.Child("matchConditions"))...)
	errs = append(errs, check.OneOf(at.Child("reinvocationPolicy"), s.ReinvocationPolicy, admv1.IfNeededReinvocationPolicy, admv1.NeverReinvocationPolicy)...)
	cc, verrs := newPolicy(s.Variables, s.ParamKind != nil, true)
	errs = append(errs, verrs...)
	if cc == nil {
		return errs
	}
	if len(s.Mutations) == 0 {
		errs = append(errs, field.Required(at.Child("mutations"), "mutations must contain at least one item"))
	}
	for i := range s.Mutations {
		errs = append(errs, cc.mutation(&s.Mutations[i], at.Child("mutations").Index(i))...)
	}
	return errs
}

func validateMutatingPolicyUpdate(p, old *admv1.MutatingAdmissionPolicy) check.Errors {
	if check.Same(p.Spec, old.Spec) {
		return nil
	}
	return validateMutatingPolicy(p)
}

func (p *policy) mutation(m *admv1.Mutation, at *field.Path) check.Errors {
	apply, patch := at.Child("applyConfiguration"), at.Child("jsonPatch")
	switch m.PatchType {
	case admv1.PatchTypeApplyConfiguration:
		switch {
		case m.ApplyConfiguration == nil && m.JSONPatch != nil:
			return check.Errors{field.Required(apply, "must be specified when patchType is ApplyConfiguration"),
				field.Invalid(patch, "{jsonPatch}", "must not be specified when patchType is ApplyConfiguration")}
		case m.ApplyConfiguration == nil:
			return check.Errors{field.Required(apply, "must be specified when patchType is ApplyConfiguration")}
		case m.JSONPatch != nil:
			return check.Errors{field.Invalid(patch, "{jsonPatch}", "must not be specified when patchType is ApplyConfiguration")}
		}
		return p.check(m.ApplyConfiguration.Expression, apply.Child("expression"), applyType)
	case admv1.PatchTypeJSONPatch:
		switch {
		case m.JSONPatch == nil && m.ApplyConfiguration != nil:
			return check.Errors{field.Required(patch, "must be specified when patchType is JSONPatch"),
				field.Invalid(apply, "{applyConfiguration}", "must not be specified when patchType is JSONPatch")}
		case m.JSONPatch == nil:
			return check.Errors{field.Required(patch, "must be specified when patchType is JSONPatch")}
		case m.ApplyConfiguration != nil:
			return check.Errors{field.Invalid(apply, "{applyConfiguration}", "must not be specified when patchType is JSONPatch")}
		}
		return p.check(m.JSONPatch.Expression, patch.Child("expression"), patchType)
	case "":
		return check.Errors{field.Required(at.Child("patchType"), "must specify one of ApplyConfiguration, JSONPatch")}
	}
	return check.Exactly(at.Child("patchType"), m.PatchType, admv1.PatchTypeApplyConfiguration, admv1.PatchTypeJSONPatch)
}

// validatePolicyFrame checks what both sorts of policies have.
func validatePolicyFrame(k *admv1.ParamKind, m *admv1.MatchResources, f *admv1.FailurePolicyType, ops []admv1.OperationType) (errs check.Errors) {
	at := field.NewPath("spec")
	errs = append(errs, failurePolicy(f, at.Child("failurePolicy"))...)
	if k != nil {
		errs = append(errs, validateParamKind(k, at.Child("paramKind"))...)
	}
	c := at.Child("matchConstraints")
	if m == nil {
		return append(errs, field.Required(c, ""))
	}
	errs = append(errs, validateMatch(m, ops, c)...)
	if len(m.ResourceRules) == 0 {
		errs = append(errs, field.Required(c.Child("resourceRules"), ""))
	}
	return errs
}

func validateParamKind(k *admv1.ParamKind, at *field.Path) (errs check.Errors) {
	v := at.Child("apiVersion")
	switch gv, err := schema.ParseGroupVersion(k.APIVersion); {
	case k.APIVersion == "":
		errs = append(errs, field.Required(v, ""))
	case err != nil:
		errs = append(errs, field.Invalid(v, k.APIVersion, err.Error()))
	default:
		if gv.Group != "" {
			errs = append(errs, check.Each(v, gv.Group, validation.IsDNS1123Subdomain(gv.Group))...)
		}
		errs = append(errs, check.Each(v, gv.Version, validation.IsDNS1035Label(gv.Version))...)
	}
	if k.Kind == "" {
		return append(errs, field.Required(at.Child("kind"), ""))
	}
	if msgs := validation.IsDNS1035Label(strings.ToLower(k.Kind)); len(msgs) > 0 {
		errs = append(errs, field.Invalid(at.Child("kind"), k.Kind, "may have mixed case, but should otherwise match: "+strings.Join(msgs, ",")))
	}
	return errs
}

func (p *policy) validation(v *admv1.Validation, at *field.Path) check.Errors {
	errs := p.check(v.Expression, at.Child("expression"), celgo.BoolType)
	message := strings.TrimSpace(v.Message)
	switch {
	case v.Message != "" && message == "":
		errs = append(errs, field.Invalid(at.Child("message"), v.Message, "message must be non-empty if specified"))
	case strings.ContainsAny(message, "\n\r"):
		errs = append(errs, field.Invalid(at.Child("message"), v.Message, "must not contain line breaks"))
	}
	if v.MessageExpression != "" {
		path := at.Child("messageExpression")
		if strings.TrimSpace(v.MessageExpression) == "" {
			errs = append(errs, field.Invalid(path, v.MessageExpression, "must be non-empty if specified"))
		} else {
			q := *p
			q.options.HasAuthorizer = false
			errs = append(errs, q.check(v.MessageExpression, path, celgo.StringType)...)
		}
	}
	if v.Reason != nil && !slices.Contains(reasons, *v.Reason) {
		errs = append(errs, field.NotSupported(at.Child("reason"), *v.Reason, reasons))
	}
	return errs
}

func (p *policy) auditAnnotations(name string, list []admv1.AuditAnnotation, at *field.Path) (errs check.Errors) {
	if len(list) > maxAuditAnnotations {
		errs = append(errs, field.TooMany(at, len(list), maxAuditAnnotations))
	}
	keys := sets.New[string]()
	for i, a := range list {
		i := at.Index(i)
		switch {
		case a.Key == "":
			errs = append(errs, field.Required(i.Child("key"), ""))
		case keys.Has(a.Key):
			errs = append(errs, field.Duplicate(i.Child("key"), a.Key))
		default:
			errs = append(errs, check.Each(i.Child("key"), name+"/"+a.Key, validation.IsQualifiedName(name+"/"+a.Key))...)
		}
		keys.Insert(a.Key)
		value := i.Child("valueExpression")
		switch {
		case strings.TrimSpace(a.ValueExpression) == "":
			errs = append(errs, field.Required(value, "valueExpression is not specified"))
		case len(strings.TrimSpace(a.ValueExpression)) > maxValueExpression:
			errs = append(errs, field.TooLong(value, a.ValueExpression, maxValueExpression))
		default:
			errs = append(errs, p.check(a.ValueExpression, value, celgo.StringType, celgo.NullType)...)
		}
	}
	return errs
}
