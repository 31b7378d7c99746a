package admissionregistration

import (
	"slices"

	admv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateValidatingBinding(b *admv1.ValidatingAdmissionPolicyBinding) check.Errors {
	errs := validateBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, allOperations)
	return append(errs, validateActions(b.Spec.ValidationActions, field.NewPath("spec", "validationActions"))...)
}

func validateMutatingBinding(b *admv1.MutatingAdmissionPolicyBinding) check.Errors {
	return validateBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, mutatedOperations)
}

func validateBinding(policyName string, ref *admv1.ParamRef, m *admv1.MatchResources, ops []admv1.OperationType) check.Errors {
	at := field.NewPath("spec")
	errs := check.RequiredName(at.Child("policyName"), policyName)
	if ref != nil {
		errs = append(errs, validateParamRef(ref, at.Child("paramRef"))...)
	}
	if m != nil {
		errs = append(errs, validateMatch(m, ops, at.Child("matchResources"))...)
	}
	return errs
}

func validateParamRef(r *admv1.ParamRef, at *field.Path) (errs check.Errors) {
	switch {
	case r.Name != "" && r.Selector != nil:
		const msg = "name and selector are mutually exclusive"
		errs = append(errs, field.Forbidden(at.Child("name"), msg), field.Forbidden(at.Child("selector"), msg))
	case r.Name == "" && r.Selector == nil:
		errs = append(errs, field.Required(at, "one of name or selector must be specified"))
	case r.Selector != nil:
		errs = append(errs, check.Selector(at.Child("selector"), r.Selector)...)
	default:
		errs = append(errs, check.Each(at.Child("name"), r.Name, check.PathSegment(r.Name, false))...)
	}
	action := at.Child("parameterNotFoundAction")
	if r.ParameterNotFoundAction == nil {
		return append(errs, field.Required(action, ""))
	}
	return append(errs, check.Exactly(action, *r.ParameterNotFoundAction, admv1.AllowAction, admv1.DenyAction)...)
}

func validateActions(actions []admv1.ValidationAction, at *field.Path) (errs check.Errors) {
	if len(actions) == 0 {
		errs = append(errs, field.Required(at, "at least one validation action is required"))
	}
	seen := sets.New[admv1.ValidationAction]()
	for i, a := range actions {
		errs = append(errs, check.Exactly(at.Index(i), a, admv1.Audit, admv1.Deny, admv1.Warn)...)
		if seen.Has(a) {
			errs = append(errs, field.Duplicate(at.Index(i), a))
		}
		seen.Insert(a)
	}
	if slices.Contains(actions, admv1.Deny) && slices.Contains(actions, admv1.Warn) {
		errs = append(errs, field.Invalid(at, actions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"))
	}
	return errs
}
