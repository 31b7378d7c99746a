package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/view"
)

func TestWhenAllBegan(t *testing.T) {
	all := []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpNotIn, Values: []int32{0}}}}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", RestartPolicyRules: all}, {Name: "b", RestartPolicyRules: all}, {Name: "plain"}}}}
	// made, ended (0: runs), code
	type run struct {
		name        string
		made, ended int64
		code        int32
	}
	for _, tc := range []struct {
		name string
		runs []run
		want int64
		left bool
	}{
		{"nothing ended", []run{{"a", 1, 0, 0}}, 0, false},
		{"as it should", []run{{"a", 1, 5, 0}, {"plain", 1, 6, 1}}, 0, false},
		{"one ended", []run{{"a", 1, 5, 1}, {"b", 1, 0, 0}, {"plain", 1, 0, 0}}, 5, true},
		{"the others were ended for it", []run{{"a", 1, 5, 1}, {"b", 1, 7, 137}, {"plain", 1, 8, 137}}, 5, true},
		{"some have begun", []run{{"a", 1, 5, 1}, {"b", 1, 7, 137}, {"a", 9, 0, 0}, {"plain", 10, 0, 0}}, 5, true},
		{"all have begun", []run{{"a", 1, 5, 1}, {"b", 1, 7, 137}, {"a", 9, 0, 0}, {"b", 9, 0, 0}, {"plain", 10, 0, 0}}, 5, false},
		{"another round", []run{{"a", 1, 5, 1}, {"b", 1, 7, 137}, {"a", 9, 0, 0}, {"b", 9, 20, 3}, {"plain", 10, 0, 0}}, 20, true},
	} {
		v := &view.Pod{}
		for i, r := range tc.runs {
			st := &runtimeapi.ContainerStatus{Id: string(rune('0' + i)), Metadata: &runtimeapi.ContainerMetadata{Name: r.name}, CreatedAt: r.made, FinishedAt: r.ended, ExitCode: r.code,
				State: runtimeapi.ContainerState_CONTAINER_RUNNING}
			if r.ended != 0 {
				st.State = runtimeapi.ContainerState_CONTAINER_EXITED
			}
			v = v.With(&view.Container{ContainerStatus: st})
		}
		at := restartedAt(pod, v)
		if at != tc.want || restartingAll(pod, v, at) != tc.left {
			t.Errorf("%s: %d, %v; want %d, %v", tc.name, at, restartingAll(pod, v, at), tc.want, tc.left)
		}
	}
}
