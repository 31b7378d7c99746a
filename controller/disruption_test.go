package controller

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine/enginetest"
	"knarr.dev/knarr/controller/nodelifecycle"
	"knarr.dev/knarr/controller/podgc"
)

func node(name string, ready corev1.ConditionStatus, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: taints},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
}

func placed(name, node string, tolerations ...corev1.Toleration) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: corev1.PodSpec{NodeName: node, Tolerations: tolerations}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
}

func exists(b *enginetest.Bench, pod string) bool {
	_, ok := b.Cache(client.Pods, "").Get("a", pod)
	return ok
}

// disrupted returns the reason of a pod's disruption.
func disrupted(b *enginetest.Bench, pod string) string {
	p := get[*corev1.Pod](b, client.Pods, pod)
	if p == nil {
		return ""
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget {
			return c.Reason
		}
	}
	return ""
}

func TestTaintEviction(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	f := clienttest.New()
	f.Now = clk.Now
	b := enginetest.Start(t, f, clk, nodelifecycle.NewEviction())
	b.Make(client.Nodes, node("n", corev1.ConditionTrue))
	seconds := int64(300)
	b.Make(client.Pods, placed("intolerant", "n"))
	b.Make(client.Pods, placed("patient", "n", corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds}))
	b.Make(client.Pods, placed("tolerant", "n", corev1.Toleration{Operator: corev1.TolerationOpExists}))
	b.Make(client.Pods, placed("elsewhere", "m"))
	now := metav1.NewTime(clk.Now())
	enginetest.Change(b, client.Key{Resource: client.Nodes, Name: "n"}, func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute, TimeAdded: &now}}
	})
	leaving := func(pod string) bool { return get[*corev1.Pod](b, client.Pods, pod).DeletionTimestamp != nil }
	b.Until("the intolerant pod leaves", func() bool { return leaving("intolerant") }, client.Pods)
	if got := disrupted(b, "intolerant"); got != "DeletionByTaintManager" {
		t.Errorf("reason of the disruption %q", got)
	}
	if leaving("patient") {
		t.Error("the patient pod left before its toleration ended")
	}
	advance(t, clk, 10*time.Second, func() bool { return leaving("patient") })
	b.Until("the patient pod leaves", func() bool { return leaving("patient") }, client.Pods)
	if waited := clk.Since(now.Time); waited < 300*time.Second {
		t.Errorf("the patient pod left after %v", waited)
	}
	if leaving("tolerant") || leaving("elsewhere") {
		t.Error("a pod left that tolerates the taint or is on another node")
	}
}

func TestToleratedAgainIsNotEvicted(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	f := clienttest.New()
	f.Now = clk.Now
	b := enginetest.Start(t, f, clk, nodelifecycle.NewEviction())
	now := metav1.NewTime(clk.Now())
	taint := corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoExecute, TimeAdded: &now}
	seconds := int64(300)
	b.Make(client.Nodes, node("n", corev1.ConditionTrue, taint))
	b.Make(client.Pods, placed("patient", "n", corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists, TolerationSeconds: &seconds}))
	enginetest.Change(b, client.Key{Resource: client.Nodes, Name: "n"}, func(n *corev1.Node) { n.Spec.Taints = nil })
	clk.Step(time.Hour)
	// A pod that must leave is the sign that the controller has seen the hour.
	b.Make(client.Nodes, node("m", corev1.ConditionTrue, taint))
	b.Make(client.Pods, placed("intolerant", "m"))
	b.Until("the other pod leaves", func() bool { return get[*corev1.Pod](b, client.Pods, "intolerant").DeletionTimestamp != nil }, client.Pods)
	if get[*corev1.Pod](b, client.Pods, "patient").DeletionTimestamp != nil {
		t.Error("the pod was evicted though its node's taint is gone")
	}
}

func TestPodsOfLostNodesAreCollected(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	f := clienttest.New()
	f.Now = clk.Now
	b := enginetest.Start(t, f, clk, podgc.New(100))
	b.Make(client.Nodes, node("here", corev1.ConditionTrue))
	b.Make(client.Nodes, node("dead", corev1.ConditionFalse))
	b.Make(client.Pods, placed("stays", "here"))
	b.Make(client.Pods, placed("lost", "gone"))
	started := clk.Now()
	lost := func() bool { return !exists(b, "lost") }
	advance(t, clk, 5*time.Second, lost)
	failed := make(chan corev1.PodPhase, 1)
	defer b.Cache(client.Pods, "").Subscribe(func(ev client.Event) {
		if ev.Type == client.Deleted && ev.Object.GetName() == "lost" {
			failed <- ev.Object.(*corev1.Pod).Status.Phase
		}
	})()
	b.Until("the pod of a missing node is gone", lost, client.Pods)
	if phase := <-failed; phase != corev1.PodFailed {
		t.Errorf("the pod was removed as %s, want Failed", phase)
	}
	if waited := clk.Since(started); waited < 40*time.Second {
		t.Errorf("it was removed after %v, want 40 s of quarantine", waited)
	}

	b.Make(client.Pods, placed("stuck", "dead"))
	if err := b.Delete(t.Context(), client.Key{Resource: client.Pods, Namespace: "a", Name: "stuck"}, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if !exists(b, "stuck") {
		t.Fatal("a terminating pod was removed while its node is only not ready")
	}
	enginetest.Change(b, client.Key{Resource: client.Nodes, Name: "dead"}, func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
	})
	b.Until("the terminating pod of a node out of service is gone", func() bool { return !exists(b, "stuck") }, client.Pods)
	if !exists(b, "stays") {
		t.Error("a pod of a healthy node was removed")
	}
}
