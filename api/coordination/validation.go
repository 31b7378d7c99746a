package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateLease(l *coordinationv1.Lease) field.ErrorList {
	at, s := field.NewPath("spec"), &l.Spec
	var errs field.ErrorList
	if d := s.LeaseDurationSeconds; d != nil && *d <= 0 {
		errs = append(errs, field.Invalid(at.Child("leaseDurationSeconds"), *d, "must be greater than 0"))
	}
	if t := s.LeaseTransitions; t != nil {
		errs = append(errs, check.NonNegative(at.Child("leaseTransitions"), *t)...)
	}
	return errs
}
