package pod

import (
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// decision says which containers of a pod are to be started now.
type decision struct {
	start []*corev1.Container
	// replace are running containers whose definition changed.
	replace []*view.Container
	// finished: nothing of the pod is to run any more.
	finished bool
}

// plan compares a pod with its containers. sandbox is the ID of the ready
// sandbox, "" when there is none yet. started says of a container ID that its
// postStart hook and startup probe have passed.
//
// Init containers run one after the other; a sidecar among them lets the next
// begin once it has started. Once a main container ran in this sandbox, the init
// containers are done with, save that sidecars are kept alive.
func plan(pod *corev1.Pod, v *view.Pod, sandbox string, started func(id string) bool) decision {
	var d decision
	began := false
	for i := range pod.Spec.Containers {
		if c := v.Latest(pod.Spec.Containers[i].Name); c != nil && c.State != 0 && (sandbox == "" || c.SandboxID == sandbox) {
			began = true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		last := v.Latest(c.Name)
		if last != nil && sandbox != "" && last.SandboxID != sandbox && !last.Running() {
			last = nil
		}
		if podspec.IsSidecar(c) {
			if !last.Running() {
				// A sidecar is not brought back when what it served has ended.
				if !began || !mainsEnded(pod, v) {
					d.start = append(d.start, c)
				}
				if !began {
					return d
				}
			} else if !began && !started(last.Id) {
				return d
			}
			continue
		}
		if began || last.Exited() && last.ExitCode == 0 {
			continue
		}
		switch {
		case last.Running():
		case last.Exited() && !initRestarts(pod, c, last.ExitCode):
			d.finished = true
		default:
			d.start = append(d.start, c)
		}
		return d
	}
	if mainsEnded(pod, v) {
		d.finished, d.start = true, nil
		return d
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		last := v.Latest(c.Name)
		switch {
		case last.Running():
			if h := last.Annotations[podspec.AnnotationHash]; h != "" && h != podspec.Hash(c) {
				d.replace = append(d.replace, last)
			}
		case last.Exited() && !podspec.ShouldRestart(pod, c, last.ExitCode) && last.Annotations[podspec.AnnotationHash] == podspec.Hash(c):
		default:
			d.start = append(d.start, c)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		c := (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if v.Latest(c.Name) == nil {
			d.start = append(d.start, c)
		}
	}
	return d
}

func initRestarts(pod *corev1.Pod, c *corev1.Container, code int32) bool {
	if c.RestartPolicy == nil && len(c.RestartPolicyRules) == 0 {
		return pod.Spec.RestartPolicy != corev1.RestartPolicyNever
	}
	return podspec.ShouldRestart(pod, c, code)
}

// mainsEnded tells whether every main container ended for good.
func mainsEnded(pod *corev1.Pod, v *view.Pod) bool {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		last := v.Latest(c.Name)
		if !last.Exited() || podspec.ShouldRestart(pod, c, last.ExitCode) {
			return false
		}
	}
	return len(pod.Spec.Containers) > 0
}
