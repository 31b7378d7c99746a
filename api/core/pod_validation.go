package core

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validatePod(p *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec")
	errs := ValidatePodSpec(&p.Spec, at)
	if len(p.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(at.Child("ephemeralContainers"), "cannot be set on create"))
	}
	if p.Spec.NodeName != "" && len(p.Spec.SchedulingGates) > 0 {
		errs = append(errs, field.Forbidden(at.Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
	}
	return errs
}

// updatable is what a pod's update may change, as the error tells it.
var updatable = strings.Join([]string{
	"`spec.containers[*].image`",
	"`spec.initContainers[*].image`",
	"`spec.activeDeadlineSeconds`",
	"`spec.tolerations` (only additions to existing tolerations)",
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
}, ",")

func validatePodUpdate(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec")
	errs := ValidatePodSpec(&p.Spec, at)
	resized := false
	for _, l := range []struct {
		name     string
		now, was []corev1.Container
	}{{"containers", p.Spec.Containers, old.Spec.Containers}, {"initContainers", p.Spec.InitContainers, old.Spec.InitContainers}} {
		if len(l.now) != len(l.was) {
			errs = append(errs, field.Forbidden(at.Child(l.name), "pod updates may not add or remove containers"))
			resized = true
		}
	}
	if resized {
		return errs
	}
	errs = append(errs, checkDeadlineChange(at.Child("activeDeadlineSeconds"), p.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds)...)
	errs = append(errs, checkTolerationChange(at.Child("tolerations"), p.Spec.Tolerations, old.Spec.Tolerations)...)
	errs = append(errs, checkGateChange(at.Child("schedulingGates"), p.Spec.SchedulingGates, old.Spec.SchedulingGates)...)
	munged := mungedSpec(p, old)
	if len(old.Spec.SchedulingGates) > 0 {
		errs = append(errs, gatedChange(at, munged, &old.Spec)...)
	}
	if !check.Same(*munged, old.Spec) {
		errs = append(errs, field.Forbidden(at, fmt.Sprintf("pod updates may not change fields other than %s\n%v", updatable, diff.Diff(old.Spec, *munged))))
	}
	return errs
}

// mungedSpec is the new spec with the old values of all that may change: what
// differs from the old spec then is forbidden.
func mungedSpec(p, old *corev1.Pod) *corev1.PodSpec {
	m := p.Spec.DeepCopy()
	for i := range m.Containers {
		m.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range m.InitContainers {
		m.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	m.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	m.Tolerations = old.Spec.Tolerations
	m.SchedulingGates = old.Spec.SchedulingGates
	if was, now := old.Spec.TerminationGracePeriodSeconds, m.TerminationGracePeriodSeconds; was != nil && *was < 0 && now != nil && *now == 1 {
		m.TerminationGracePeriodSeconds = was
	}
	return m
}

func checkDeadlineChange(at *field.Path, now, was *int64) errorList {
	switch {
	case now != nil && (*now < 0 || *now > math.MaxInt32):
		return errorList{field.Invalid(at, *now, validation.InclusiveRangeError(0, math.MaxInt32))}
	case now != nil && was != nil && *now > *was:
		return errorList{field.Invalid(at, *now, "must be less than or equal to previous value")}
	case now == nil && was != nil:
		return errorList{field.Invalid(at, nil, "must not update from a positive integer to nil value")}
	}
	return nil
}

// checkTolerationChange lets tolerations be added and their seconds change.
func checkTolerationChange(at *field.Path, now, was []corev1.Toleration) errorList {
	for _, o := range was {
		o.TolerationSeconds = nil
		if !slices.ContainsFunc(now, func(t corev1.Toleration) bool {
			t.TolerationSeconds = nil
			return t == o
		}) {
			return errorList{field.Forbidden(at, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return nil
}

func checkGateChange(at *field.Path, now, was []corev1.PodSchedulingGate) errorList {
	var errs errorList
	for i, g := range now {
		if !slices.Contains(was, g) {
			errs = append(errs, field.Forbidden(at.Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name)))
		}
	}
	return errs
}

// gatedChange lets a gated pod narrow where it may run: node selectors can be
// added to, and so can the required node affinity. What it accepts is put back
// to its old value in munged.
func gatedChange(at *field.Path, munged, old *corev1.PodSpec) errorList {
	var errs errorList
	for k, value := range old.NodeSelector {
		if now, ok := munged.NodeSelector[k]; !ok || now != value {
			errs = append(errs, field.Invalid(at.Child("nodeSelector"), munged.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)"))
			break
		}
	}
	munged.NodeSelector = old.NodeSelector
	errs = append(errs, checkNarrowed(at.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"), munged.Affinity, old.Affinity)...)
	if munged.Affinity != nil || old.Affinity != nil {
		a := munged.Affinity.DeepCopy()
		if a == nil {
			a = &corev1.Affinity{}
		}
		if old.Affinity != nil {
			a.NodeAffinity = old.Affinity.NodeAffinity
		} else {
			a.NodeAffinity = nil
		}
		if old.Affinity == nil && a.PodAffinity == nil && a.PodAntiAffinity == nil {
			a = nil
		}
		munged.Affinity = a
	}
	return errs
}

// checkNarrowed wants each required term of was in now, with nothing but added
// requirements.
func checkNarrowed(at *field.Path, now, was *corev1.Affinity) errorList {
	required := func(a *corev1.Affinity) []corev1.NodeSelectorTerm {
		if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
			return nil
		}
		return a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	n, w := required(now), required(was)
	if len(w) == 0 {
		return nil
	}
	if len(n) != len(w) {
		return errorList{field.Invalid(at, n, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")}
	}
	var errs errorList
	for i := range w {
		if !extends(n[i].MatchExpressions, w[i].MatchExpressions) || !extends(n[i].MatchFields, w[i].MatchFields) {
			errs = append(errs, field.Invalid(at.Index(i), n[i], "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}

func extends(now, was []corev1.NodeSelectorRequirement) bool {
	return len(now) >= len(was) && check.Same(now[:len(was)], was)
}

func validatePodTemplateObject(t *corev1.PodTemplate) field.ErrorList {
	return ValidatePodTemplate(&t.Template, field.NewPath("template"))
}
