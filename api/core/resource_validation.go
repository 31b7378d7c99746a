package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func checkRequirements(at *field.Path, r *corev1.ResourceRequirements) errorList {
	var errs errorList
	for name, q := range r.Limits {
		errs = append(errs, checkResource(at.Child("limits").Key(string(name)), name, q)...)
	}
	for name, q := range r.Requests {
		errs = append(errs, checkResource(at.Child("requests").Key(string(name)), name, q)...)
		limit, limited := r.Limits[name]
		switch {
		case limited && !overcommits(name) && q.Cmp(limit) != 0:
			errs = append(errs, field.Invalid(at.Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case limited && q.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(at.Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		case !limited && !overcommits(name):
			errs = append(errs, field.Required(at.Child("limits"), "Limit must be set for non overcommitable resources"))
		}
	}
	if onlyHugePages(r.Limits) && onlyHugePages(r.Requests) && len(r.Limits)+len(r.Requests) > 0 {
		errs = append(errs, field.Forbidden(at, "HugePages require cpu or memory"))
	}
	return errs
}

// onlyHugePages tells whether a list has huge pages, if anything, but neither
// processors nor memory.
func onlyHugePages(l corev1.ResourceList) bool {
	huge := len(l) == 0
	for name := range l {
		switch {
		case name == corev1.ResourceCPU, name == corev1.ResourceMemory:
			return false
		case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			huge = true
		}
	}
	return huge
}

func checkResource(at *field.Path, name corev1.ResourceName, q resource.Quantity) errorList {
	errs := check.Each(at, string(name), validation.IsQualifiedName(string(name)))
	if len(errs) == 0 && !strings.Contains(string(name), "/") && !standardResource(name) {
		if !quotaResource(name) {
			errs = append(errs, field.Invalid(at, string(name), "must be a standard resource type or fully qualified"))
		}
		errs = append(errs, field.Invalid(at, string(name), "must be a standard resource for containers"))
	}
	errs = append(errs, check.Quantity(at, q)...)
	if !overcommits(name) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(at, q.String(), "must be an integer"))
	}
	return errs
}

func standardResource(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return true
	}
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// overcommits tells whether more of a resource may be promised than there is:
// true of Kubernetes' own but huge pages, false of extended ones.
func overcommits(name corev1.ResourceName) bool {
	own := !strings.Contains(string(name), "/") || strings.HasPrefix(string(name), corev1.ResourceDefaultNamespacePrefix)
	return own && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}
