package status

import (
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/podspec"
)

// Phase sums the containers' states up. stopped says that no container will run
// again, whatever the restart policy.
func Phase(pod *corev1.Pod, inits, containers []corev1.ContainerStatus, stopped bool) corev1.PodPhase {
	var pendingInit, failedInit, deadInit, sidecarsRunning int
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
			if code := st.State.Terminated.ExitCode; code != 0 {
				failedInit++
				if !initRestarts(pod, i, code) {
					deadInit++
				}
			}
		case st.LastTerminationState.Terminated != nil && st.LastTerminationState.Terminated.ExitCode != 0:
			failedInit++
		default:
			pendingInit++
		}
	}
	var waiting, running, ended, succeeded, again int
	for i, st := range containers {
		switch {
		case st.State.Running != nil:
			running++
		case st.State.Terminated != nil:
			ended++
			if st.State.Terminated.ExitCode == 0 {
				succeeded++
			}
			if podspec.ShouldRestart(pod, &pod.Spec.Containers[i], st.State.Terminated.ExitCode) {
				again++
			}
		case st.LastTerminationState.Terminated != nil:
			ended++
			again++
		default:
			waiting++
		}
	}
	if deadInit > 0 || failedInit > 0 && stopped {
		return corev1.PodFailed
	}
	began := running+ended > 0
	switch {
	case !began && stopped || waiting > 0 && stopped:
		return corev1.PodFailed
	case (pendingInit > 0 || failedInit > 0) && !began, waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case ended == 0:
		return corev1.PodPending
	case !stopped && again > 0:
		return corev1.PodRunning
	case !stopped && sidecarsRunning > 0:
		// Sidecars outlive the containers that they serve; the pod ends with them.
		return corev1.PodRunning
	case succeeded == ended:
		return corev1.PodSucceeded
	}
	return corev1.PodFailed
}

// initRestarts tells whether a failed init container is tried again.
func initRestarts(pod *corev1.Pod, i int, code int32) bool {
	c := pod.Spec.InitContainers[i]
	if c.RestartPolicy == nil && pod.Spec.RestartPolicy != corev1.RestartPolicyNever {
		return true
	}
	return podspec.ShouldRestart(pod, &c, code)
}
