package pod

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// restartedAt is when, in nanoseconds since 1970, a container last ended so that all
// of its pod are to begin anew; 0: none did. What was made before then belongs to the
// past; that the agent ended some of it therefore is no reason for another round.
func restartedAt(pod *corev1.Pod, v *view.Pod) (at int64) {
	var ended []*view.Container
	for _, list := range v.Containers {
		for _, c := range list {
			if c.Exited() {
				ended = append(ended, c)
			}
		}
	}
	slices.SortFunc(ended, func(a, b *view.Container) int { return cmp.Compare(a.FinishedAt, b.FinishedAt) })
	for _, c := range ended {
		if spec := podspec.Find(pod, c.Metadata.GetName()); spec != nil && c.CreatedAt > at && podspec.RestartsAll(spec, c.ExitCode) {
			at = c.FinishedAt
		}
	}
	return at
}

// since returns what of v was made after at, in nanoseconds since 1970.
func since(v *view.Pod, at int64) *view.Pod {
	if at == 0 {
		return v
	}
	out := &view.Pod{Sandboxes: v.Sandboxes, Containers: map[string][]*view.Container{}}
	for name, list := range v.Containers {
		for _, c := range list {
			if c.CreatedAt > at {
				out.Containers[name] = append(out.Containers[name], c)
			}
		}
	}
	return out
}

// beginAnew ends what still runs of the past; it reports whether there is any.
func (a *Actor) beginAnew(at int64) bool {
	left := false
	for name, list := range a.view.Containers {
		for _, c := range list {
			if !c.Running() || c.CreatedAt > at || podspec.ContainerKind(a.pod, name) == "ephemeral_container" {
				continue
			}
			left = true
			a.kill(c, "Stopping container "+name+": all containers of the pod are restarted", nil, false)
		}
	}
	return left
}

// restartingAll tells whether the containers that all are to begin anew have not all
// done so.
func restartingAll(pod *corev1.Pod, v *view.Pod, at int64) bool {
	if at == 0 {
		return false
	}
	for i := range pod.Spec.Containers {
		if c := v.Latest(pod.Spec.Containers[i].Name); c == nil || c.CreatedAt <= at {
			return true
		}
	}
	return false
}
