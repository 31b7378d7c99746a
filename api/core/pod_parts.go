package core

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/diff"
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

// prepareEphemeral keeps all but the ephemeral containers.
func prepareEphemeral(p, old *corev1.Pod) {
	wanted, version, managed := p.Spec.EphemeralContainers, p.ResourceVersion, p.ManagedFields
	old.DeepCopyInto(p)
	p.Spec.EphemeralContainers, p.ResourceVersion, p.ManagedFields = wanted, version, managed
}

// validateEphemeral lets ephemeral containers be added, and none change or go.
func validateEphemeral(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec", "ephemeralContainers")
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

// prepareResize keeps all but the containers' resources and how they are changed.
func prepareResize(p, old *corev1.Pod) {
	wanted := p.DeepCopy()
	old.DeepCopyInto(p)
	p.ResourceVersion, p.ManagedFields = wanted.ResourceVersion, wanted.ManagedFields
	for _, l := range []struct{ to, from []corev1.Container }{{p.Spec.Containers, wanted.Spec.Containers}, {p.Spec.InitContainers, wanted.Spec.InitContainers}} {
		for i := range l.to {
			j := slices.IndexFunc(l.from, func(c corev1.Container) bool { return c.Name == l.to[i].Name })
			if j >= 0 {
				l.to[i].Resources, l.to[i].ResizePolicy = l.from[j].Resources, l.from[j].ResizePolicy
			}
		}
	}
}

// validateResize lets requests and limits of processors and memory change, as long
// as the pod's quality of service stays.
func validateResize(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec")
	errs := ValidatePodSpec(&p.Spec, at)
	if QOSClass(p) != QOSClass(old) {
		errs = append(errs, field.Invalid(at, QOSClass(p), "Pod QOS Class may not change as a result of resizing"))
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		errs = append(errs, field.Forbidden(at, "windows pods cannot be resized"))
	}
	munged := p.Spec.DeepCopy()
	for _, l := range []struct {
		name    string
		to, was []corev1.Container
	}{{"containers", munged.Containers, old.Spec.Containers}, {"initContainers", munged.InitContainers, old.Spec.InitContainers}} {
		for i := range l.to {
			sidecar := l.was[i].RestartPolicy != nil && *l.was[i].RestartPolicy == corev1.ContainerRestartPolicyAlways
			if l.name == "initContainers" && !sidecar {
				continue // one that has ended uses nothing
			}
			at := at.Child(l.name).Index(i).Child("resources")
			errs = append(errs, checkKept(at.Child("requests"), l.to[i].Resources.Requests, l.was[i].Resources.Requests)...)
			errs = append(errs, checkKept(at.Child("limits"), l.to[i].Resources.Limits, l.was[i].Resources.Limits)...)
			l.to[i].Resources = resized(l.to[i].Resources, l.was[i].Resources)
			l.to[i].ResizePolicy = l.was[i].ResizePolicy
		}
	}
	if !check.Same(*munged, old.Spec) {
		errs = append(errs, field.Forbidden(at, fmt.Sprintf("only cpu and memory resources are mutable\n%v", diff.Diff(old.Spec, *munged))))
	}
	return errs
}

// checkKept refuses that a request or limit goes altogether.
func checkKept(at *field.Path, now, was corev1.ResourceList) field.ErrorList {
	var errs field.ErrorList
	for name := range was {
		if _, ok := now[name]; !ok && changeable(name) {
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("resource %s cannot be removed", at.String())))
			break
		}
	}
	return errs
}

func changeable(name corev1.ResourceName) bool {
	return name == corev1.ResourceCPU || name == corev1.ResourceMemory
}

// resized is what a container asks for, with the old values of what may change.
func resized(now, was corev1.ResourceRequirements) corev1.ResourceRequirements {
	keep := func(n, w corev1.ResourceList) corev1.ResourceList {
		out := corev1.ResourceList{}
		for name, q := range n {
			if !changeable(name) {
				out[name] = q
			}
		}
		for name, q := range w {
			if changeable(name) {
				out[name] = q
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	}
	now.Requests, now.Limits = keep(now.Requests, was.Requests), keep(now.Limits, was.Limits)
	return now
}
