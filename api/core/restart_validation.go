package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// Bounds of a container's restart rules.
const (
	maxRestartRules = 20
	maxExitCodes    = 255
)

// checkRestart checks a container's own restart policy and its rules.
func (v *podValidator) checkRestart(at *field.Path, c *corev1.Container) {
	if c.RestartPolicy != nil {
		v.add(check.Exactly(at.Child("restartPolicy"), *c.RestartPolicy,
			corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)...)
	} else if len(c.RestartPolicyRules) > 0 {
		v.add(field.Required(at.Child("restartPolicy"), "must specify restartPolicy when restart rules are used"))
	}
	rules := at.Child("restartPolicyRules")
	if n := len(c.RestartPolicyRules); n > maxRestartRules {
		v.add(field.TooMany(rules, n, maxRestartRules))
	}
	for i, r := range c.RestartPolicyRules {
		at := rules.Index(i)
		v.add(check.Exactly(at.Child("action"), r.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)...)
		codes := at.Child("exitCodes")
		if r.ExitCodes == nil {
			v.add(field.Required(codes, "must be specified"))
			continue
		}
		v.add(check.Exactly(codes.Child("operator"), r.ExitCodes.Operator, corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)...)
		if n := len(r.ExitCodes.Values); n > maxExitCodes {
			v.add(field.TooMany(codes.Child("values"), n, maxExitCodes))
		}
	}
}

// checkResize checks what resizing a container does to it. All but duplicates
// are errors of the list.
func (v *podValidator) checkResize(at *field.Path, policies []corev1.ContainerResizePolicy) {
	seen := map[corev1.ResourceName]bool{}
	for i, p := range policies {
		if seen[p.ResourceName] {
			v.add(field.Duplicate(at.Index(i), p.ResourceName))
		}
		seen[p.ResourceName] = true
		v.add(check.OneOf(at, p.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)...)
		v.add(check.OneOf(at, p.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)...)
		if v.spec.RestartPolicy == corev1.RestartPolicyNever && p.RestartPolicy != corev1.NotRequired {
			v.add(field.Invalid(at, p.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'"))
		}
	}
}
