package replicaset

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine/enginetest"
)

func running(name, node string, ready bool, age time.Duration, now time.Time) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(now.Add(-age))}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-age))}}
	}
	return p
}

func TestVictims(t *testing.T) {
	now := time.Unix(1e9, 0)
	cheap := running("cheap", "n3", true, time.Hour, now)
	cheap.Annotations = map[string]string{corev1.PodDeletionCost: "-5"}
	pods := []*corev1.Pod{
		running("old", "n1", true, 100*time.Hour, now), running("young", "n2", true, time.Minute, now),
		running("doubled", "n4", true, 100*time.Hour, now), running("doubled2", "n4", true, 100*time.Hour, now),
		cheap, running("unready", "n5", false, time.Hour, now), running("unassigned", "", false, time.Hour, now),
	}
	want := []string{"unassigned", "unready", "cheap", "doubled", "doubled2", "young"}
	for i, p := range victims(pods, pods, 6, now) {
		if p.Name != want[i] {
			t.Errorf("victim %d is %s, want %s", i, p.Name, want[i])
		}
	}
}

// TestFiftyPodsAtOnce holds the time from a replica set to its pods.
func TestFiftyPodsAtOnce(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, New())
	l := map[string]string{"app": "x"}
	n := int32(50)
	from := time.Now()
	b.Make(client.ReplicaSets, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}, Spec: appsv1.ReplicaSetSpec{
		Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: l}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}}}})
	b.Until("50 replicas", func() bool {
		rs, ok := client.Cached[*appsv1.ReplicaSet](b.Cache(client.ReplicaSets, ""), "a", "x")
		return ok && rs.Status.Replicas == 50
	}, client.ReplicaSets)
	took := time.Since(from)
	t.Logf("50 pods in %v", took)
	if took > time.Second {
		t.Errorf("50 pods took %v, want well under 100 ms on a quiet machine", took)
	}
	if got := len(client.ListCached[*corev1.Pod](b.Cache(client.Pods, ""), "a", nil)); got != 50 {
		t.Errorf("%d pods, want 50", got)
	}
}
