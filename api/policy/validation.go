package policy

import (
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateBudget(b *policyv1.PodDisruptionBudget) field.ErrorList {
	at, s := field.NewPath("spec"), &b.Spec
	var errs field.ErrorList
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(at, s, "minAvailable and maxUnavailable cannot be both set"))
	}
	errs = append(errs, check.IntOrPercent(at.Child("minAvailable"), s.MinAvailable)...)
	errs = append(errs, check.AtMostHundredPercent(at.Child("minAvailable"), s.MinAvailable)...)
	errs = append(errs, check.IntOrPercent(at.Child("maxUnavailable"), s.MaxUnavailable)...)
	errs = append(errs, check.AtMostHundredPercent(at.Child("maxUnavailable"), s.MaxUnavailable)...)
	errs = append(errs, check.Selector(at.Child("selector"), s.Selector)...)
	if p := s.UnhealthyPodEvictionPolicy; p != nil {
		errs = append(errs, check.OneOf(at.Child("unhealthyPodEvictionPolicy"), *p, policyv1.AlwaysAllow, policyv1.IfHealthyBudget)...)
	}
	return errs
}

func validateBudgetStatus(b, _ *policyv1.PodDisruptionBudget) field.ErrorList {
	at, s := field.NewPath("status"), &b.Status
	errs := validation.ValidateConditions(s.Conditions, at.Child("conditions"))
	for _, c := range []check.Count{
		{Name: "disruptionsAllowed", N: s.DisruptionsAllowed}, {Name: "currentHealthy", N: s.CurrentHealthy},
		{Name: "desiredHealthy", N: s.DesiredHealthy}, {Name: "expectedPods", N: s.ExpectedPods},
	} {
		errs = append(errs, check.NonNegative(at.Child(c.Name), c.N)...)
	}
	return errs
}
