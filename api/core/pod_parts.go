package core

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/kind"
)

// podParts are the subresources by which a part of a pod changes: its ephemeral
// containers, and what its containers may use.
func podParts() []kind.Subresource {
	gvk := schema.GroupVersionKind{Kind: "Pod"}
	verbs := []string{"get", "patch", "update"}
	return []kind.Subresource{
		{Name: "ephemeralcontainers", GVK: gvk, Verbs: verbs, Prepare: kind.Pair(prepareEphemeral), Validate: kind.CheckChange(validateEphemeral)},
		{Name: "resize", GVK: gvk, Verbs: verbs, Prepare: kind.Pair(prepareResize), Validate: kind.CheckChange(validateResize)},
	}
}

// wholePod is the path of errors that are about the pod as it is.
var wholePod = field.NewPath("")

// isMirror tells whether a pod only shows what runs on a node from a file.
func isMirror(p *corev1.Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// prepareEphemeral keeps all but the ephemeral containers.
func prepareEphemeral(p, old *corev1.Pod) {
	wanted, version, managed := p.Spec.EphemeralContainers, p.ResourceVersion, p.ManagedFields
	old.DeepCopyInto(p)
	p.Spec.EphemeralContainers, p.ResourceVersion, p.ManagedFields = wanted, version, managed
}

// validateEphemeral lets ephemeral containers be added, and none change or go.
func validateEphemeral(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec", "ephemeralContainers")
	if isMirror(p) {
		return field.ErrorList{field.Forbidden(wholePod, "static pods do not support ephemeral containers")}
	}
	errs := ValidatePodSpec(&p.Spec, field.NewPath("spec"))
	for _, o := range old.Spec.EphemeralContainers {
		i := slices.IndexFunc(p.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == o.Name })
		switch {
		case i < 0:
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", o.Name)))
		case !check.Same(p.Spec.EphemeralContainers[i], o):
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be changed\n", o.Name)))
		}
	}
	return errs
}
