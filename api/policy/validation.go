package policy

import (
	policyv1 "k8s.io/api/policy/v1"
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
