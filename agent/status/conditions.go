package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// conditions returns the agent's conditions, each with its last transition, and
// after them those of others, unchanged.
func conditions(in Input, s *corev1.PodStatus) []corev1.PodCondition {
	pod := in.Pod
	ready := containersReady(pod, s)
	if why := held(in, s); why != "" && ready.Reason == "ContainersNotReady" {
		ready.Message += "; " + why
	}
	ours := []corev1.PodCondition{
		sandboxReady(in), initialized(pod, s), podReady(pod, s, ready), ready,
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	ours = append(ours, resizing(in.Resize)...)
	if in.Restarting {
		ours = append(ours, corev1.PodCondition{Type: corev1.AllContainersRestarting, Status: corev1.ConditionTrue, Reason: "ContainerExited"})
	}
	if t := in.Terminal; t != nil && t.Disruption != "" {
		ours = append(ours, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: t.Disruption, Message: t.Message})
	}
	var out []corev1.PodCondition
	for _, c := range ours {
		c.ObservedGeneration = pod.Generation
		c.LastTransitionTime = metav1.NewTime(in.Now.Truncate(1e9))
		if i := slices.IndexFunc(pod.Status.Conditions, func(o corev1.PodCondition) bool { return o.Type == c.Type }); i >= 0 {
			old := pod.Status.Conditions[i]
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			if c.Type == corev1.PodScheduled {
				old.ObservedGeneration = c.ObservedGeneration
				old.Status, old.LastTransitionTime = c.Status, c.LastTransitionTime
				c = old
			}
		}
		out = append(out, c)
	}
	for _, o := range pod.Status.Conditions {
		if o.Type == corev1.PodResizePending || o.Type == corev1.PodResizeInProgress || o.Type == corev1.AllContainersRestarting {
			continue // they go when they no longer hold
		}
		if !slices.ContainsFunc(ours, func(c corev1.PodCondition) bool { return c.Type == o.Type }) {
			out = append(out, o)
		}
	}
	return out
}

// resizing are the conditions of a resize: they are there while it waits or goes on.
func resizing(r Resize) []corev1.PodCondition {
	switch {
	case r.Pending != nil:
		return []corev1.PodCondition{{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: r.Pending.Reason, Message: r.Pending.Message}}
	case r.Error != "":
		return []corev1.PodCondition{{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue, Reason: corev1.PodReasonError, Message: r.Error}}
	case r.Doing:
		return []corev1.PodCondition{{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue}}
	}
	return nil
}

func sandboxReady(in Input) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}
	if s := in.View.Ready(); s != nil && (in.Pod.Spec.HostNetwork || len(view.IPs(s)) > 0) {
		c.Status = corev1.ConditionTrue
	} else if in.Blocked != "" {
		c.Reason, c.Message = "PodNotPrepared", in.Blocked
	}
	return c
}

// held says what keeps the pod, or containers of it, and when that is tried again.
func held(in Input, s *corev1.PodStatus) string {
	var out []string
	if in.Blocked != "" {
		out = strings.Split(in.Blocked, "\n")
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i := range list {
			st := &list[i]
			until, ok := in.Tries[st.Name]
			if w := st.State.Waiting; ok && w != nil && w.Reason != "" && until.After(in.Now) {
				why := w.Message
				if last := st.LastTerminationState.Terminated; w.Reason == "CrashLoopBackOff" && last != nil {
					why = fmt.Sprintf("it ended with exit code %d (%s)", last.ExitCode, last.Reason)
				}
				out = append(out, fmt.Sprintf("container %s: %s: %s; next try at %s", st.Name, w.Reason, why, until.UTC().Format(time.RFC3339)))
			}
		}
	}
	return strings.Join(out, "; ")
}

func initialized(pod *corev1.Pod, s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if s.Phase == corev1.PodSucceeded {
		c.Reason = "PodCompleted"
		return c
	}
	var open []string
	for i, st := range s.InitContainerStatuses {
		done := st.Ready
		if podspec.IsSidecar(&pod.Spec.InitContainers[i]) {
			done = st.Started != nil && *st.Started
		}
		if !done {
			open = append(open, st.Name)
		}
	}
	// Once a main container ran, the pod was initialized, whatever became of the
	// init containers since.
	began := slices.ContainsFunc(s.ContainerStatuses, func(st corev1.ContainerStatus) bool {
		return st.State.Running != nil || st.State.Terminated != nil || st.LastTerminationState.Terminated != nil
	})
	if len(open) > 0 && !began {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		c.Message = "containers with incomplete status: [" + strings.Join(open, " ") + "]"
	}
	return c
}

func containersReady(pod *corev1.Pod, s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}
	switch s.Phase {
	case corev1.PodSucceeded:
		c.Status, c.Reason = corev1.ConditionFalse, "PodCompleted"
		return c
	case corev1.PodFailed:
		c.Status, c.Reason = corev1.ConditionFalse, "PodFailed"
		return c
	}
	var open []string
	for i, st := range s.InitContainerStatuses {
		if podspec.IsSidecar(&pod.Spec.InitContainers[i]) && !st.Ready {
			open = append(open, st.Name)
		}
	}
	for _, st := range s.ContainerStatuses {
		if !st.Ready {
			open = append(open, st.Name)
		}
	}
	if len(open) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotReady"
		c.Message = "containers with unready status: [" + strings.Join(open, " ") + "]"
	}
	return c
}

func podReady(pod *corev1.Pod, s *corev1.PodStatus, containers corev1.PodCondition) corev1.PodCondition {
	c := containers
	c.Type = corev1.PodReady
	if containers.Status != corev1.ConditionTrue {
		return c
	}
	var messages []string
	for _, g := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(pod.Status.Conditions, func(o corev1.PodCondition) bool { return o.Type == g.ConditionType })
		switch {
		case i < 0:
			messages = append(messages, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		case pod.Status.Conditions[i].Status != corev1.ConditionTrue:
			messages = append(messages, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, pod.Status.Conditions[i].Status))
		}
	}
	if len(messages) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(messages, ", ")
	}
	return c
}
