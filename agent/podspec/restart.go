package podspec

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// ShouldRestart tells whether a container that ended with that code is to run
// again: by its own rules, by its own policy, by the pod's policy, in this order.
// Ephemeral containers never restart.
func ShouldRestart(pod *corev1.Pod, c *corev1.Container, exitCode int32) bool {
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == c.Name {
			return false
		}
	}
	if action(c, exitCode) != "" {
		return true
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	}
	return true
}

// RestartsAll tells whether a container that ended with that code has all containers of
// its pod begin anew.
func RestartsAll(c *corev1.Container, exitCode int32) bool {
	return action(c, exitCode) == corev1.ContainerRestartRuleActionRestartAllContainers
}

// action is that of the container's first rule for the code; empty: none applies.
func action(c *corev1.Container, exitCode int32) corev1.ContainerRestartRuleAction {
	for _, r := range c.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, exitCode)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action
		}
	}
	return ""
}
