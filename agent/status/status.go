// Package status computes what a pod's status says from what is wanted and what
// the runtime reports. It is pure: the clock and every observation come in as
// values. Phases, conditions, reasons and messages are those of
// https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle.
package status

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// Waiting is why a container does not run at the moment.
type Waiting struct {
	Reason, Message string
}

// Terminal is a verdict of the agent that ends a pod whatever its containers
// did: a missed deadline, an eviction, a refused admission.
type Terminal struct {
	Phase           corev1.PodPhase
	Reason, Message string
	// Disruption is the reason of the pod's condition DisruptionTarget; empty: it
	// gets none.
	Disruption string
	// Grace bounds the pod's grace period, in seconds; nil: its own holds.
	Grace *int64
}

// Resize is how far a change of the limits of running containers has come.
type Resize struct {
	// Pending is why the node does not begin: Deferred or Infeasible. Nil: it does.
	Pending *Waiting
	// Doing: the runtime's containers are being changed; Error is why that failed.
	Doing bool
	Error string
}

// Input is everything that a status depends on.
type Input struct {
	Pod  *corev1.Pod // its Status is the last one written
	View *view.Pod   // nil: nothing in the runtime
	// Waiting overrides, by container name, the state of a container that is to
	// be started (again).
	Waiting map[string]Waiting
	// Alone tells whether a container has CPUs alone; nil: none has.
	Alone func(container string) bool
	// Tries is when, by name, a container that is held is tried again.
	Tries map[string]time.Time
	// Blocked is what keeps all containers from being made, and when that is tried
	// again; empty: nothing does.
	Blocked string
	// Started and Ready are the outcome of probes, by container ID.
	Started, Ready map[string]bool
	// Messages are termination messages by container ID, where the runtime's own
	// message does not serve.
	Messages map[string]string
	NodeIPs  []string
	Terminal *Terminal
	Resize   Resize
	// Restarting: all containers are being restarted, because one asked for it.
	Restarting bool
	Memory     int64 // of the node, bytes
	// Health says how the devices fare that a container has; nil: it has none.
	Health func(container string) []corev1.ResourceStatus
	// Stopped: every container has ended and none will start again.
	Stopped bool
	Now     time.Time
}

// Compute returns the status that the pod ought to show.
func Compute(in Input) corev1.PodStatus {
	pod, old := in.Pod, in.Pod.Status
	s := *old.DeepCopy()
	s.ObservedGeneration = pod.Generation
	s.QOSClass = podspec.QOS(pod)
	if s.StartTime == nil {
		s.StartTime = timeOf(in.Now.UnixNano())
	}
	s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses = nil, nil, nil
	for i := range pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, containerStatus(in, &pod.Spec.InitContainers[i], old.InitContainerStatuses, true))
	}
	for i := range pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, containerStatus(in, &pod.Spec.Containers[i], old.ContainerStatuses, false))
	}
	for i := range pod.Spec.EphemeralContainers {
		c := (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		st := containerStatus(in, c, old.EphemeralContainerStatuses, false)
		st.Started, st.Ready = nil, false
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, st)
	}
	addresses(&s, in)
	s.Phase = Phase(pod, s.InitContainerStatuses, s.ContainerStatuses, in.Stopped)
	// A pod that ended once stays ended.
	if old.Phase == corev1.PodSucceeded || old.Phase == corev1.PodFailed {
		s.Phase = old.Phase
	}
	if in.Terminal != nil {
		s.Reason, s.Message = in.Terminal.Reason, in.Terminal.Message
		if in.Stopped || in.View == nil {
			s.Phase = in.Terminal.Phase
		}
	}
	s.Conditions = conditions(in, &s)
	return s
}

func addresses(s *corev1.PodStatus, in Input) {
	s.HostIP, s.HostIPs = "", nil
	for i, ip := range in.NodeIPs {
		if i == 0 {
			s.HostIP = ip
		}
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	var ips []string
	switch {
	case in.Pod.Spec.HostNetwork:
		if in.View.Sandbox() != nil {
			ips = in.NodeIPs
		}
	case in.View.Ready() != nil:
		ips = view.IPs(in.View.Ready())
	}
	if len(ips) > 0 {
		s.PodIP, s.PodIPs = ips[0], nil
		for _, ip := range ips {
			s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
		}
	}
}

// timeOf turns nanoseconds since 1970 into an API time, whole seconds as it is
// stored.
func timeOf(ns int64) *metav1.Time {
	t := metav1.NewTime(time.Unix(0, ns).Truncate(time.Second))
	return &t
}
