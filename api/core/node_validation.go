package core

import (
	"fmt"
	"regexp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateNode(n *corev1.Node) field.ErrorList {
	at := field.NewPath("spec")
	var errs errorList
	seen := map[string]bool{}
	for i, t := range n.Spec.Taints {
		at := field.NewPath("metadata", "taints").Index(i)
		errs = append(errs, check.QualifiedName(at.Child("key"), t.Key)...)
		errs = append(errs, check.Each(at.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
		errs = append(errs, check.OneOf(at.Child("effect"), t.Effect, taintEffects...)...)
		key := t.Key + ":" + string(t.Effect)
		if seen[key] {
			errs = append(errs, duplicateTaint(at, t))
		}
		seen[key] = true
	}
	for i, cidr := range n.Spec.PodCIDRs {
		errs = append(errs, validation.IsValidCIDRForLegacyField(at.Child("podCIDRs").Index(i), cidr, false, nil)...)
	}
	for i, a := range n.Status.Addresses {
		for _, b := range n.Status.Addresses[:i] {
			if a == b {
				errs = append(errs, field.Duplicate(field.NewPath("status", "addresses").Index(i), a))
			}
		}
	}
	for name, list := range map[string]corev1.ResourceList{"capacity": n.Status.Capacity, "allocatable": n.Status.Allocatable} {
		for resource, q := range list {
			at := field.NewPath("status", name, string(resource))
			errs = append(errs, check.Each(at, string(resource), validation.IsQualifiedName(string(resource)))...)
			errs = append(errs, check.Quantity(at, q)...)
			if !overcommits(resource) && q.MilliValue()%1000 != 0 {
				errs = append(errs, field.Invalid(at, q.String(), "must be an integer"))
			}
		}
	}
	return append(errs, checkFeatures(field.NewPath("status", "declaredFeatures"), n.Status.DeclaredFeatures)...)
}

var featureName = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*(/[A-Za-z0-9]+)*$`)

// checkFeatures checks what a node declares that it can do.
func checkFeatures(at *field.Path, features []string) (errs errorList) {
	for i, f := range features {
		at := at.Index(i)
		if slices.Contains(features[:i], f) {
			errs = append(errs, field.Duplicate(at, f))
		}
		if !featureName.MatchString(f) {
			errs = append(errs, field.Invalid(at, f, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", f)))
		}
		if i > 0 && f < features[i-1] {
			errs = append(errs, field.Invalid(at, f, "list must be sorted alphabetically"))
		}
	}
	return errs
}

func validateNodeUpdate(n, old *corev1.Node) field.ErrorList {
	errs := validateNode(n)
	at := field.NewPath("spec")
	if len(old.Spec.PodCIDRs) > 0 && !check.Same(n.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(at.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
	}
	if old.Spec.ProviderID != "" && n.Spec.ProviderID != old.Spec.ProviderID {
		errs = append(errs, field.Forbidden(at.Child("providerID"), "node updates may not change providerID except from \"\" to valid"))
	}
	return errs
}

// duplicateTaint says that a key and effect were there before.
func duplicateTaint(at *field.Path, t corev1.Taint) *field.Error {
	err := field.Duplicate(at, t)
	err.Detail = "taints must be unique by key and effect pair"
	return err
}
