package status

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestForeign(t *testing.T) {
	told := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", Conditions: []corev1.PodCondition{
		{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: "gate", Status: corev1.ConditionFalse}}}
	api := corev1.PodStatus{Phase: corev1.PodRunning, NominatedNodeName: "n", Conditions: []corev1.PodCondition{
		{Type: "gate", Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionFalse}}}
	got := Foreign(&told, &api)
	if got.PodIP != "10.0.0.1" || got.NominatedNodeName != "n" || len(got.Conditions) != 2 {
		t.Errorf("status: %+v", got)
	}
	for i, want := range []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: "gate", Status: corev1.ConditionTrue}} {
		if got.Conditions[i] != want {
			t.Errorf("condition %d: %+v, want %+v", i, got.Conditions[i], want)
		}
	}
	api.Phase = corev1.PodFailed
	if got := Foreign(&told, &api); got.Phase != corev1.PodFailed || got.PodIP != "" {
		t.Errorf("a pod that somebody else failed: %+v", got)
	}
}
