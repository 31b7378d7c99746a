package status

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// Scheme prefixes container IDs in the API.
const Scheme = "knarr://"

func containerStatus(in Input, c *corev1.Container, old []corev1.ContainerStatus, init bool) corev1.ContainerStatus {
	st := corev1.ContainerStatus{Name: c.Name, Image: c.Image, Started: ptr.To(false)}
	var before *corev1.ContainerStatus
	if i := slices.IndexFunc(old, func(o corev1.ContainerStatus) bool { return o.Name == c.Name }); i >= 0 {
		before = &old[i]
	}
	st.Resources, st.AllocatedResources = resources(in, c, before)
	st.VolumeMounts = mounts(c)
	if in.Health != nil {
		st.AllocatedResourcesStatus = in.Health(c.Name)
	}

	var list []*view.Container
	if in.View != nil {
		list = in.View.Containers[c.Name]
	}
	waiting, held := in.Waiting[c.Name]
	if len(list) == 0 || list[0].State == 0 && len(list) == 1 {
		// CONTAINER_CREATED is 0: made, not yet started.
		return absent(in, st, before, waiting, held)
	}
	cur := list[0]
	var last *view.Container
	if cur.State == 0 {
		// The next attempt is on its way: show the last one as past.
		last, cur = list[1], nil
		if !held {
			waiting, held = Waiting{Reason: Creating(in.Pod)}, true
		}
	} else if len(list) > 1 {
		last = list[1]
	}
	if cur != nil {
		fill(&st, cur)
		switch {
		case cur.Running() && held:
			// Not presented as running before its postStart hook has ended.
		case cur.Running():
			st.State.Running = &corev1.ContainerStateRunning{StartedAt: *timeOf(cur.StartedAt)}
			st.Started = ptr.To(in.Started[cur.Id])
			st.Ready = in.Ready[cur.Id] && *st.Started
			if init && !podspec.IsSidecar(c) {
				st.Ready = false
			}
		case held && !in.Stopped:
			last = cur
		default:
			st.State.Terminated = terminated(in, cur)
			st.Ready = init && !podspec.IsSidecar(c) && cur.Exited() && cur.ExitCode == 0
		}
	}
	if last != nil {
		if cur == nil {
			fill(&st, last)
		}
		st.LastTerminationState.Terminated = terminated(in, last)
	} else if before != nil && st.RestartCount > 0 && st.RestartCount == before.RestartCount {
		// The runtime may have thrown the previous container away.
		st.LastTerminationState = *before.LastTerminationState.DeepCopy()
	}
	if st.State.Running == nil && st.State.Terminated == nil {
		st.State.Waiting = &corev1.ContainerStateWaiting{Reason: waiting.Reason, Message: waiting.Message}
	}
	return st
}

// absent describes a container of which the runtime has nothing.
func absent(in Input, st corev1.ContainerStatus, before *corev1.ContainerStatus, waiting Waiting, held bool) corev1.ContainerStatus {
	if before != nil {
		st.RestartCount, st.LastTerminationState = before.RestartCount, *before.LastTerminationState.DeepCopy()
		switch {
		case before.State.Terminated != nil && !held:
			// Removed after it ended: its outcome stands.
			st.State, st.ImageID, st.ContainerID, st.Ready = *before.State.DeepCopy(), before.ImageID, before.ContainerID, before.Ready
			return st
		case before.State.Running != nil:
			lost := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: 137, Reason: "ContainerStatusUnknown", ContainerID: before.ContainerID,
				Message: "The container could not be located when the pod was deleted.  The container used to be Running",
			}}
			if in.Stopped {
				st.State = lost
				return st
			}
			st.LastTerminationState = lost
		}
	}
	if !held {
		waiting = Waiting{Reason: Creating(in.Pod), Message: in.Blocked}
	}
	st.State.Waiting = &corev1.ContainerStateWaiting{Reason: waiting.Reason, Message: waiting.Message}
	return st
}

func fill(st *corev1.ContainerStatus, c *view.Container) {
	st.RestartCount = int32(c.Restarts())
	st.ContainerID = Scheme + c.Id
	if name := c.Image.GetUserSpecifiedImage(); name != "" {
		st.Image = name
	} else if c.Image.GetImage() != "" {
		st.Image = c.Image.Image
	}
	st.ImageID = c.ImageRef
	if u := c.User.GetLinux(); u != nil {
		st.User = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}}
	}
}

func terminated(in Input, c *view.Container) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message, ContainerID: Scheme + c.Id,
		FinishedAt: *timeOf(c.FinishedAt),
	}
	if c.StartedAt != 0 {
		t.StartedAt = *timeOf(c.StartedAt)
	}
	if m, ok := in.Messages[c.Id]; ok && m != "" {
		t.Message = m
	}
	if t.Reason == "" {
		t.Reason = "Error"
		if t.ExitCode == 0 {
			t.Reason = "Completed"
		}
	}
	return t
}

// resources are what the container has, and what the node has set aside for it.
// While they are not what is asked for, they are what was said before.
func resources(in Input, c *corev1.Container, before *corev1.ContainerStatus) (*corev1.ResourceRequirements, corev1.ResourceList) {
	have, allocated := wanted(c)
	if before == nil || before.Resources == nil {
		return have, allocated
	}
	if in.Resize.Pending != nil {
		return before.Resources.DeepCopy(), before.AllocatedResources.DeepCopy()
	}
	cur := in.View.Latest(c.Name)
	want := podspec.LinuxResources(in.Pod, c, in.Memory)
	if in.Alone != nil && in.Alone(c.Name) {
		want.CpuQuota = 0
	}
	if limits := cur.Limits(); cur.Running() && limits != nil && !podspec.SameLimits(limits, want) {
		return before.Resources.DeepCopy(), allocated
	}
	return have, allocated
}

func wanted(c *corev1.Container) (*corev1.ResourceRequirements, corev1.ResourceList) {
	if len(c.Resources.Requests) == 0 && len(c.Resources.Limits) == 0 {
		return &corev1.ResourceRequirements{}, nil
	}
	return &corev1.ResourceRequirements{
		Requests: c.Resources.Requests.DeepCopy(), Limits: c.Resources.Limits.DeepCopy(), Claims: c.Resources.Claims,
	}, c.Resources.Requests.DeepCopy()
}

func mounts(c *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		s := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			s.RecursiveReadOnly = ptr.To(corev1.RecursiveReadOnlyDisabled)
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled {
				s.RecursiveReadOnly = ptr.To(corev1.RecursiveReadOnlyEnabled)
			}
		}
		out = append(out, s)
	}
	return out
}

// Creating is the reason of a container that is about to run.
func Creating(pod *corev1.Pod) string {
	if len(pod.Spec.InitContainers) > 0 {
		return "PodInitializing"
	}
	return "ContainerCreating"
}
