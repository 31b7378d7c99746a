package admissionregistration

import (
	"slices"
	"strings"

	admv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

const all = "*"

var (
	allOperations = []admv1.OperationType{admv1.OperationAll, admv1.Connect, admv1.Create, admv1.Delete, admv1.Update}
	// Mutating policies see no deletions: there is nothing to change.
	mutatedOperations = []admv1.OperationType{admv1.OperationAll, admv1.Connect, admv1.Create, admv1.Update}
)

func validateRule(r *admv1.RuleWithOperations, operations []admv1.OperationType, at *field.Path) check.Errors {
	errs := validateOperations(r.Operations, operations, at.Child("operations"))
	errs = append(errs, validateList(r.APIGroups, at.Child("apiGroups"), "API groups", true)...)
	errs = append(errs, validateList(r.APIVersions, at.Child("apiVersions"), "API versions", false)...)
	errs = append(errs, validateResources(r.Resources, at.Child("resources"))...)
	if r.Scope != nil {
		errs = append(errs, check.Exactly(at.Child("scope"), *r.Scope, admv1.AllScopes, admv1.ClusterScope, admv1.NamespacedScope)...)
	}
	return errs
}

func validateOperations(list, supported []admv1.OperationType, at *field.Path) (errs check.Errors) {
	if len(list) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	if len(list) > 1 && slices.Contains(list, admv1.OperationAll) {
		errs = append(errs, field.Invalid(at, list, "if '*' is present, must not specify other operations"))
	}
	for i, op := range list {
		if op == admv1.Delete && !slices.Contains(supported, op) {
			// Mutating policies: told of all rules together.
			errs = append(errs, field.NotSupported(field.NewPath("spec", "matchConstraints", "resourceRules", "operations"), op, supported))
			continue
		}
		errs = append(errs, check.Exactly(at.Index(i), op, supported...)...)
	}
	return errs
}

// validateList checks a list of names in which "*" stands alone.
func validateList(list []string, at *field.Path, what string, mayBeEmpty bool) (errs check.Errors) {
	if len(list) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	if len(list) > 1 && slices.Contains(list, all) {
		errs = append(errs, field.Invalid(at, list, "if '*' is present, must not specify other "+what))
	}
	for i, v := range list {
		if v == "" && !mayBeEmpty {
			errs = append(errs, field.Required(at.Index(i), ""))
		}
	}
	return errs
}

// validateResources refuses entries that others cover already: "*/*", "x/*" and
// "*/x".
func validateResources(list []string, at *field.Path) (errs check.Errors) {
	if len(list) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	whole, everySub := sets.New[string](), sets.New[string]() // resources with all subresources; subresources of all resources
	for i, v := range list {
		if v == "" {
			errs = append(errs, field.Required(at.Index(i), ""))
			continue
		}
		if v == "*/*" {
			if len(list) > 1 {
				errs = append(errs, field.Invalid(at, list, "if '*/*' is present, must not specify other resources"))
			}
			continue
		}
		res, sub, isSub := strings.Cut(v, "/")
		if !isSub {
			continue
		}
		if whole.Has(res) {
			errs = append(errs, field.Invalid(at.Index(i), v, "if '"+res+"/*' is present, must not specify "+v))
		}
		if everySub.Has(sub) {
			errs = append(errs, field.Invalid(at.Index(i), v, "if '*/"+sub+"' is present, must not specify "+v))
		}
		if sub == all {
			whole.Insert(res)
		}
		if res == all {
			everySub.Insert(sub)
		}
	}
	if len(list) > 1 && slices.Contains(list, all) {
		for _, v := range list {
			if !strings.Contains(v, "/") && v != all {
				return append(errs, field.Invalid(at, list, "if '*' is present, must not specify other resources without subresources"))
			}
		}
	}
	return errs
}

func validateMatch(m *admv1.MatchResources, operations []admv1.OperationType, at *field.Path) (errs check.Errors) {
	errs = append(errs, check.Selector(at.Child("namespaceSelector"), m.NamespaceSelector)...)
	errs = append(errs, check.Selector(at.Child("objectSelector"), m.ObjectSelector)...)
	errs = append(errs, matchPolicy(m.MatchPolicy, at.Child("matchPolicy"))...)
	for i := range m.ResourceRules {
		errs = append(errs, validateNamedRule(&m.ResourceRules[i], operations, at.Child("resourceRules").Index(i))...)
	}
	for i := range m.ExcludeResourceRules {
		errs = append(errs, validateNamedRule(&m.ExcludeResourceRules[i], operations, at.Child("excludeResourceRules").Index(i))...)
	}
	return errs
}

func matchPolicy(p *admv1.MatchPolicyType, at *field.Path) check.Errors {
	if p == nil {
		return nil
	}
	return check.Exactly(at, *p, admv1.Equivalent, admv1.Exact)
}

func failurePolicy(p *admv1.FailurePolicyType, at *field.Path) check.Errors {
	if p == nil {
		return nil
	}
	return check.Exactly(at, *p, admv1.Fail, admv1.Ignore)
}

func validateNamedRule(r *admv1.NamedRuleWithOperations, operations []admv1.OperationType, at *field.Path) check.Errors {
	errs := validateRule(&r.RuleWithOperations, operations, at)
	seen := sets.New[string]()
	for i, name := range r.ResourceNames {
		p := at.Child("resourceNames").Index(i)
		for _, msg := range path.ValidatePathSegmentName(name, false) {
			errs = append(errs, field.Invalid(p, name, msg))
		}
		if seen.Has(name) {
			errs = append(errs, field.Duplicate(p, name))
		}
		seen.Insert(name)
	}
	return errs
}
