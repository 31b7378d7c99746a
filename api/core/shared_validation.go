package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/resource"

	"knarr.dev/knarr/api/check"
)

// checkPodResources checks what the pod's containers share: it must have room for
// what they ask for themselves.
func (v *podValidator) checkPodResources(at *field.Path) {
	r := v.spec.Resources
	if r == nil {
		return
	}
	if len(r.Claims) > 0 {
		v.add(field.Forbidden(at.Child("claims"), "claims may not be set for Resources at pod-level"))
	}
	unknown := append(podLevelOnly(at.Child("limits"), r.Limits), podLevelOnly(at.Child("requests"), r.Requests)...)
	if v.add(unknown...); len(unknown) > 0 {
		return
	}
	v.add(checkRequirements(at, r)...)
	pod := &corev1.Pod{Spec: *v.spec}
	for name, sum := range resource.AggregateContainerRequests(pod, resource.PodResourcesOptions{}) {
		if !resource.IsSupportedPodLevelResource(name) {
			continue
		}
		if own, ok := r.Requests[name]; ok && own.Cmp(sum) < 0 {
			v.add(field.Invalid(at.Child("requests").Key(string(name)), own.String(), fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", sum.String())))
		}
	}
	for i := range v.spec.Containers {
		for name, limit := range v.spec.Containers[i].Resources.Limits {
			if own, ok := r.Limits[name]; ok && limit.Cmp(own) > 0 {
				v.add(field.Invalid(at.Child("containers").Index(i).Key(string(name)).Child("limits"), limit.String(),
					fmt.Sprintf("must be less than or equal to pod limits of %s", own.String())))
			}
		}
	}
}

func podLevelOnly(at *field.Path, l corev1.ResourceList) (errs errorList) {
	for name := range l {
		if !resource.IsSupportedPodLevelResource(name) {
			errs = append(errs, field.NotSupported(at.Key(string(name)), name, []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceHugePagesPrefix, corev1.ResourceMemory}))
		}
	}
	return errs
}

// checkPodClaims checks the claims that the pod's containers can use.
func (v *podValidator) checkPodClaims(at *field.Path) {
	seen := map[string]bool{}
	for i, c := range v.spec.ResourceClaims {
		at := at.Index(i)
		v.checkName(at.Child("name"), c.Name, seen)
		for _, f := range []struct {
			name  string
			value *string
		}{{"resourceClaimName", c.ResourceClaimName}, {"resourceClaimTemplateName", c.ResourceClaimTemplateName}} {
			if f.value != nil {
				v.add(check.DNSSubdomain(at.Child(f.name), *f.value)...)
			}
		}
		shown := struct { // as Kubernetes writes it
			Name                                         string
			ResourceClaimName, ResourceClaimTemplateName *string
		}{c.Name, c.ResourceClaimName, c.ResourceClaimTemplateName}
		switch {
		case c.ResourceClaimName != nil && c.ResourceClaimTemplateName != nil:
			v.add(field.Invalid(at, shown, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"))
		case c.ResourceClaimName == nil && c.ResourceClaimTemplateName == nil:
			v.add(field.Invalid(at, shown, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"))
		}
	}
}

// checkClaims checks which of the pod's claims, or of their requests, a container
// has to do with.
func (v *podValidator) checkClaims(at *field.Path, claims []corev1.ResourceClaim) {
	var names []string
	for _, c := range v.spec.ResourceClaims {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	whole, some := map[string]bool{}, map[string]bool{}
	for i, c := range claims {
		at := at.Index(i)
		if c.Name == "" {
			v.add(field.Required(at, ""))
			continue
		}
		key := c.Name + "/" + c.Request
		if whole[c.Name] || some[key] || c.Request == "" && slices.ContainsFunc(claims[:i], func(o corev1.ResourceClaim) bool { return o.Name == c.Name }) {
			v.add(field.Duplicate(at, strings.TrimSuffix(key, "/")))
		} else if !slices.Contains(names, c.Name) {
			err := field.NotFound(at, c.Name)
			err.Detail = "must be one of the names in pod.spec.resourceClaims: " + strings.Join(names, ", ")
			if len(names) == 0 {
				err.Detail = "must be one of the names in pod.spec.resourceClaims which is empty"
			}
			v.add(err)
		}
		if c.Request != "" {
			v.add(check.DNSLabel(at.Child("request"), c.Request)...)
		}
		whole[c.Name] = whole[c.Name] || c.Request == ""
		some[key] = true
	}
}
