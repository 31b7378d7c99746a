package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/view"
)

// Only a first status without news may wait.
func TestUntold(t *testing.T) {
	in := func(state runtimeapi.ContainerState) *view.Pod {
		return (&view.Pod{}).With(&view.Container{ContainerStatus: &runtimeapi.ContainerStatus{
			Id: "1", Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, State: state,
		}})
	}
	pending := corev1.PodStatus{Phase: corev1.PodPending}
	for name, tc := range map[string]struct {
		actor *Actor
		want  corev1.PodStatus
		out   bool
	}{
		"nothing yet":       {&Actor{view: &view.Pod{}}, pending, true},
		"created":           {&Actor{view: in(runtimeapi.ContainerState_CONTAINER_CREATED)}, pending, true},
		"an init container": {&Actor{view: in(runtimeapi.ContainerState_CONTAINER_RUNNING)}, pending, false},
		"it has ended":      {&Actor{view: in(runtimeapi.ContainerState_CONTAINER_EXITED)}, pending, false},
		"running":           {&Actor{view: &view.Pod{}}, corev1.PodStatus{Phase: corev1.PodRunning}, false},
		"a pull that fails": {&Actor{view: &view.Pod{}, waiting: map[string]status.Waiting{"c": {Reason: "ErrImagePull"}}}, pending, false},
		"stopping":          {&Actor{view: &view.Pod{}, stopping: true}, pending, false},
		"not the first":     {&Actor{view: &view.Pod{}, pod: &corev1.Pod{Status: corev1.PodStatus{StartTime: &metav1.Time{}}}}, pending, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := tc.actor
			if a.pod == nil {
				a.pod = &corev1.Pod{}
			}
			if out := a.untold(tc.want); out != tc.out {
				t.Errorf("untold is %v, want %v", out, tc.out)
			}
		})
	}
}
