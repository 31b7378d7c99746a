package status

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// own are the conditions that the agent keeps, and the scheduler's, which it takes
// over with its first write; all others are somebody else's.
var own = []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady,
	corev1.PodScheduled, corev1.PodResizePending, corev1.PodResizeInProgress}

// Foreign tells what others wrote apart from what the agent told: the result is
// the status that the agent told, but for what others have a say in, which is as
// the API has it. From it Compute finds whether the pod has news of its own, which
// are written at once; what else the API says differently is a foreign write, which
// stands until the pod has news or is reconciled.
//
// A pod that somebody else declared ended has ended.
func Foreign(told, api *corev1.PodStatus) corev1.PodStatus {
	if api.Phase == corev1.PodSucceeded || api.Phase == corev1.PodFailed {
		return *api
	}
	s := *told
	s.NominatedNodeName = api.NominatedNodeName
	s.ResourceClaimStatuses, s.ExtendedResourceClaimStatus = api.ResourceClaimStatuses, api.ExtendedResourceClaimStatus
	s.Conditions = nil
	for _, list := range []struct {
		from []corev1.PodCondition
		own  bool
	}{{told.Conditions, true}, {api.Conditions, false}} {
		for _, c := range list.from {
			if slices.Contains(own, c.Type) == list.own {
				s.Conditions = append(s.Conditions, c)
			}
		}
	}
	return s
}
