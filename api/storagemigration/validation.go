package storagemigration

import (
	storagemigrationv1beta1 "k8s.io/api/storagemigration/v1beta1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validate(m *storagemigrationv1beta1.StorageVersionMigration) field.ErrorList {
	at, r := field.NewPath("spec", "resource"), m.Spec.Resource
	if r.Resource == "" {
		return field.ErrorList{field.Required(at.Child("resource"), "resource is required to be set")}
	}
	errs := check.Each(at.Child("resource"), r.Resource, validation.IsDNS1035Label(r.Resource))
	if r.Group != "" {
		errs = append(errs, check.DNSSubdomain(at.Child("group"), r.Group)...)
	}
	return errs
}

func validateUpdate(m, old *storagemigrationv1beta1.StorageVersionMigration) field.ErrorList {
	return append(validate(m), check.Immutable(field.NewPath("spec"), m.Spec, old.Spec)...)
}

// validateStatus sees to it that what is decided stays so.
func validateStatus(m, old *storagemigrationv1beta1.StorageVersionMigration) field.ErrorList {
	at := field.NewPath("status")
	errs := metavalidation.ValidateConditions(m.Status.Conditions, at.Child("conditions"))
	conditions := func(message string) {
		errs = append(errs, field.Invalid(at.Child("conditions"), m.Status.Conditions, message))
	}
	const succeeded, failed = storagemigrationv1beta1.MigrationSucceeded, storagemigrationv1beta1.MigrationFailed
	if Is(m, succeeded) && Is(m, failed) {
		conditions("Both success and failed conditions cannot be true at the same time")
	}
	if Is(old, succeeded) && !Is(m, succeeded) {
		conditions("Success condition cannot be set to false once it is true")
	}
	if Is(old, failed) && !Is(m, failed) {
		conditions("Failed condition cannot be set to false once it is true")
	}
	if rv := m.Status.ResourceVersion; rv != "" {
		if _, err := resourceversion.CompareResourceVersion(rv, rv); err != nil {
			errs = append(errs, field.Invalid(at.Child("resourceVersion"), rv, err.Error()))
		}
	}
	if old.Status.ResourceVersion != "" {
		errs = append(errs, check.Immutable(at.Child("resourceVersion"), m.Status.ResourceVersion, old.Status.ResourceVersion)...)
	}
	return errs
}
