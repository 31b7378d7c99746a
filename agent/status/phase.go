package status

import (
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/podspec"
)

// Phase sums the containers' states up. stopped says that no container will run
// again, whatever the restart policy.
func Phase(pod *corev1.Pod, inits, containers []corev1.ContainerStatus, stopped bool) corev1.PodPhase {
	var pendingInit, failedInit, sidecarsRunning int
	for i, st := range inits {
		if podspec.IsSidecar(&pod.Spec.InitContainers[i]) {
			switch {
			case st.State.Running != nil:
				sidecarsRunning++
				if st.Started == nil || !*st.Started {
					pendingInit++
				}
			case st.State.Waiting != nil && st.LastTerminationState.Terminated == nil:
				pendingInit++
			}
			continue
		}
		switch {
		case st.State.Running != nil:
			pendingInit++
		case st.State.Terminated != nil:
			if st.State.Terminated.ExitCode != 0 {
				failedInit++
			}
		case st.LastTerminationState.Terminated != nil && st.LastTerminationState.Terminated.ExitCode != 0:
			failedInit++
		default:
			pendingInit++
		}
	}
	var waiting, running, ended, succeeded int
	for _, st := range containers {
		switch {
		case st.State.Running != nil:
			running++
		case st.State.Terminated != nil:
			ended++
			if st.State.Terminated.ExitCode == 0 {
				succeeded++
			}
		case st.LastTerminationState.Terminated != nil:
			ended++
		default:
			waiting++
		}
	}
	never := pod.Spec.RestartPolicy == corev1.RestartPolicyNever
	if failedInit > 0 && (never || stopped) {
		return corev1.PodFailed
	}
	began := running+ended > 0
	switch {
	case (pendingInit > 0 || failedInit > 0) && !began:
		if stopped {
			return corev1.PodFailed
		}
		return corev1.PodPending
	case waiting > 0:
		if stopped {
			return corev1.PodFailed
		}
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case ended == 0:
		return corev1.PodPending
	case stopped:
		if succeeded == ended {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	case pod.Spec.RestartPolicy == corev1.RestartPolicyAlways || pod.Spec.RestartPolicy == "":
		return corev1.PodRunning
	case sidecarsRunning > 0:
		// Sidecars outlive the containers that they serve; the pod ends with them.
		return corev1.PodRunning
	case succeeded == ended:
		return corev1.PodSucceeded
	case never:
		return corev1.PodFailed
	default:
		return corev1.PodRunning
	}
}
