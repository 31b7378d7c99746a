package pod

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// observed builds a view from words such as "c=running", "i=exit0", "c=exit1@old".
func observed(pod *corev1.Pod, words string) *view.Pod {
	v := &view.Pod{}
	for _, w := range strings.Fields(words) {
		name, state, _ := strings.Cut(w, "=")
		state, sandbox, old := strings.Cut(state, "@")
		if !old {
			sandbox = "s"
		}
		st := &runtimeapi.ContainerStatus{Id: name, Metadata: &runtimeapi.ContainerMetadata{Name: name}, Annotations: map[string]string{}}
		if c := podspec.Find(pod, name); c != nil {
			st.Annotations[podspec.AnnotationHash] = podspec.Hash(c)
		}
		switch state {
		case "running":
			st.State = runtimeapi.ContainerState_CONTAINER_RUNNING
		case "stale":
			st.State = runtimeapi.ContainerState_CONTAINER_RUNNING
			st.Annotations[podspec.AnnotationHash] = "other"
		case "exit0", "exit1":
			st.State = runtimeapi.ContainerState_CONTAINER_EXITED
			st.ExitCode = int32(state[4] - '0')
		}
		v = v.With(&view.Container{ContainerStatus: st, SandboxID: sandbox})
	}
	return v
}

func TestPlan(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	for _, tc := range []struct {
		name, containers, policy, state, started string
		start, replace                           string
		finished                                 bool
	}{
		{name: "nothing yet", containers: "c d", start: "c d"},
		{name: "init first", containers: "i: j: c", start: "i"},
		{name: "init runs", containers: "i: c", state: "i=running"},
		{name: "next init", containers: "i: j: c", state: "i=exit0", start: "j"},
		{name: "inits done", containers: "i: j: c", state: "i=exit0 j=exit0", start: "c"},
		{name: "init fails", containers: "i: c", state: "i=exit1", start: "i"},
		{name: "init fails for good", containers: "i: c", policy: "Never", state: "i=exit1", finished: true},
		{name: "init of an old sandbox", containers: "i: c", state: "i=exit0@old c=exit1@old", start: "i"},
		{name: "sidecar not started", containers: "s* i: c", state: "s=running"},
		{name: "sidecar started", containers: "s* i: c", state: "s=running", started: "s", start: "i"},
		{name: "sidecar died before the rest", containers: "s* c", state: "s=exit1", start: "s"},
		{name: "sidecar died beside the rest", containers: "s* c", state: "s=exit1 c=running", start: "s"},
		{name: "init containers forgotten", containers: "i: c", state: "c=running"},
		{name: "running", containers: "c", state: "c=running"},
		{name: "restart always", containers: "c", state: "c=exit0", start: "c"},
		{name: "restart on failure", containers: "c", policy: "OnFailure", state: "c=exit1", start: "c"},
		{name: "done on success", containers: "c", policy: "OnFailure", state: "c=exit0", finished: true},
		{name: "never", containers: "c d", policy: "Never", state: "c=exit1 d=running"},
		{name: "never, all ended", containers: "c d", policy: "Never", state: "c=exit1 d=exit0", finished: true},
		{name: "sidecars do not keep a pod", containers: "s* c", policy: "Never", state: "s=running c=exit0", finished: true},
		{name: "changed image", containers: "c", state: "c=stale", replace: "c"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicy(tc.policy)}}
			if tc.policy == "" {
				pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
			}
			for _, n := range strings.Fields(tc.containers) {
				switch {
				case strings.HasSuffix(n, ":"):
					pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: n[:len(n)-1]})
				case strings.HasSuffix(n, "*"):
					pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: n[:len(n)-1], RestartPolicy: &always})
				default:
					pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: n})
				}
			}
			d := plan(pod, observed(pod, tc.state), "s", func(id string) bool { return slices.Contains(strings.Fields(tc.started), id) })
			var start, replace []string
			for _, c := range d.start {
				start = append(start, c.Name)
			}
			for _, c := range d.replace {
				replace = append(replace, c.Metadata.Name)
			}
			if got := strings.Join(start, " "); got != tc.start {
				t.Errorf("starts %q, want %q", got, tc.start)
			}
			if got := strings.Join(replace, " "); got != tc.replace {
				t.Errorf("replaces %q, want %q", got, tc.replace)
			}
			if d.finished != tc.finished {
				t.Errorf("finished is %v", d.finished)
			}
		})
	}
}
