package core

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// prepareResize keeps all but resources, the pod's own and its containers', and how
// they are changed. Containers that come, go or change places are left as they are
// wanted: validation refuses them.
func prepareResize(p, old *corev1.Pod) {
	wanted := p.DeepCopy()
	old.DeepCopyInto(p)
	p.ResourceVersion, p.ManagedFields = wanted.ResourceVersion, wanted.ManagedFields
	p.Spec.Resources = wanted.Spec.Resources
	p.Spec.Containers = resizedContainers(wanted.Spec.Containers, p.Spec.Containers)
	p.Spec.InitContainers = resizedContainers(wanted.Spec.InitContainers, p.Spec.InitContainers)
}

func resizedContainers(wanted, old []corev1.Container) []corev1.Container {
	for i := range wanted {
		j := slices.IndexFunc(old, func(c corev1.Container) bool { return c.Name == wanted[i].Name })
		if j < 0 {
			continue
		}
		resources, policy := wanted[i].Resources, wanted[i].ResizePolicy
		wanted[i] = *old[j].DeepCopy()
		wanted[i].Resources, wanted[i].ResizePolicy = resources, policy
	}
	return wanted
}

// validateResize lets requests and limits of processors and memory change, as long
// as none goes and the pod's quality of service stays.
func validateResize(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec")
	switch {
	case isMirror(old):
		return errorList{field.Forbidden(wholePod, "static pods cannot be resized")}
	case old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows:
		return errorList{field.Forbidden(wholePod, "windows pods cannot be resized")}
	}
	errs := ValidatePodSpec(&p.Spec, at)
	if QOSClass(p) != QOSClass(old) {
		errs = append(errs, field.Invalid(at, QOSClass(old), "Pod QOS Class may not change as a result of resizing"))
	}
	if !resizable(old) {
		errs = append(errs, field.Forbidden(at, "Pod running on node without support for resize"))
	}
	moved := append(checkSameContainers(at.Child("containers"), "containers", p.Spec.Containers, old.Spec.Containers),
		checkSameContainers(at.Child("initContainers"), "initContainers", p.Spec.InitContainers, old.Spec.InitContainers)...)
	if len(moved) > 0 {
		return append(errs, moved...)
	}
	errs = append(errs, checkPodResize(at, p.Spec.Resources, old.Spec.Resources)...)
	for i := range p.Spec.InitContainers {
		at, c := at.Child("initContainers").Index(i), &p.Spec.InitContainers[i]
		if !checkResized(at, c, &old.Spec.InitContainers[i], &errs) {
			errs = append(errs, field.Forbidden(at, "only cpu and memory resources for init or sidecar containers are mutable"))
		}
		restarts := slices.ContainsFunc(c.ResizePolicy, func(r corev1.ContainerResizePolicy) bool { return r.RestartPolicy == corev1.RestartContainer })
		if restarts && !isSidecar(c) {
			errs = append(errs, field.Forbidden(at, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized"))
		}
	}
	for i := range p.Spec.Containers {
		if !checkResized(at.Child("containers").Index(i), &p.Spec.Containers[i], &old.Spec.Containers[i], &errs) {
			errs = append(errs, field.Forbidden(at, "only cpu and memory resources are mutable"))
		}
	}
	return errs
}

// resizable tells whether the pod's node can resize, as far as the pod shows: a
// kubelet that can tells what running containers have.
func resizable(p *corev1.Pod) bool {
	i := slices.IndexFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Running != nil })
	return i < 0 || p.Status.ContainerStatuses[i].Resources != nil
}

// checkSameContainers refuses other containers, and another order.
func checkSameContainers(at *field.Path, what string, now, was []corev1.Container) (errs errorList) {
	if len(now) != len(was) {
		return errorList{field.Forbidden(at, what+" may not be added or removed on resize")}
	}
	for i := range now {
		if now[i].Name != was[i].Name {
			errs = append(errs, field.Forbidden(at.Index(i).Child("name"), what+" may not be renamed or reordered on resize"))
		}
	}
	return errs
}

// checkResized adds an error for requests or limits that have gone, and tells
// whether nothing but processors and memory has changed. As in Kubernetes, a
// container that has to do with claims cannot be resized.
func checkResized(at *field.Path, now, was *corev1.Container, errs *errorList) bool {
	*errs = append(*errs, checkKept(at.Child("resources"), "resource", now.Resources, was.Resources)...)
	munged := *now
	munged.Resources = resized(now.Resources, was.Resources)
	munged.Resources.Claims = nil
	return check.Same(munged, *was)
}

// checkPodResize checks the pod's own resources, which may also come.
func checkPodResize(at *field.Path, now, was *corev1.ResourceRequirements) errorList {
	switch {
	case was == nil:
		was = &corev1.ResourceRequirements{}
	case now == nil:
		return errorList{field.Forbidden(at.Child("resources"), "pod-level resources cannot be removed")}
	}
	if now == nil {
		now = &corev1.ResourceRequirements{}
	}
	errs := checkKept(at.Child("resources"), "pod-level resource", *now, *was)
	if !check.Same(resized(*now, *was), *was) {
		errs = append(errs, field.Forbidden(at, "only cpu and memory resources are mutable at pod-level"))
	}
	return errs
}

// checkKept refuses that a request or limit goes altogether.
func checkKept(at *field.Path, what string, now, was corev1.ResourceRequirements) (errs errorList) {
	for _, l := range []struct {
		name     string
		now, was corev1.ResourceList
	}{{"requests", now.Requests, was.Requests}, {"limits", now.Limits, was.Limits}} {
		for name := range l.was {
			if _, ok := l.now[name]; !ok {
				errs = append(errs, field.Forbidden(at.Child(l.name), fmt.Sprintf("%s %s cannot be removed", what, l.name)))
				break
			}
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
