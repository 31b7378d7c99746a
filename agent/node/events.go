package node

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/client"
)

// reasons are those of the events that tell of a condition, when it is false and when it is
// true.
var reasons = map[corev1.NodeConditionType][2]string{
	corev1.NodeReady:          {"NodeNotReady", "NodeReady"},
	corev1.NodeMemoryPressure: {"NodeHasSufficientMemory", "NodeHasInsufficientMemory"},
	corev1.NodeDiskPressure:   {"NodeHasNoDiskPressure", "NodeHasDiskPressure"},
	corev1.NodePIDPressure:    {"NodeHasSufficientPID", "NodeHasInsufficientPID"},
}

// tell records the events of what differs in a status that was written; a node that was just
// made has no status before.
func (r *Reporter) tell(obj client.Object, before, after corev1.NodeStatus) {
	if old, boot := before.NodeInfo.BootID, after.NodeInfo.BootID; old != "" && old != boot {
		r.cfg.Recorder.Event(obj, corev1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", r.cfg.Name, boot))
	}
	old := map[corev1.NodeConditionType]corev1.ConditionStatus{corev1.NodeReady: corev1.ConditionFalse} // no event that it was not, before
	for _, c := range before.Conditions {
		old[c.Type] = c.Status
	}
	for _, c := range after.Conditions {
		reason := reasons[c.Type][0]
		if c.Status == corev1.ConditionTrue {
			reason = reasons[c.Type][1]
		}
		if reason != "" && old[c.Type] != c.Status {
			r.cfg.Recorder.Event(obj, corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", r.cfg.Name, reason))
		}
	}
}
