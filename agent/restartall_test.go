package agent

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/critest"
)

func TestAContainerRestartsAll(t *testing.T) {
	w := newWorld(t)
	w.cri.OnExec = func(container string, cmd []string) (int32, string) {
		t.Errorf("hook %q was run in %s", cmd, container)
		return 0, ""
	}
	w.run()
	w.pod("p", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "b"}}
		p.Spec.Containers = []corev1.Container{
			{Name: "boss", Image: "b", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyNever), RestartPolicyRules: []corev1.ContainerRestartRule{{
				Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
				ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}},
			{Name: "worker", Image: "b", Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}},
			{Name: "done", Image: "b"},
		}
	})
	made := func(name string, n int) {
		t.Helper()
		w.runtime(name+" made", func(r *critest.Runtime) bool { return len(r.Containers(name)) == n })
	}
	runs := func(name string, restarts int32) {
		t.Helper()
		w.wait("p", name+" running", func(p *corev1.Pod) bool {
			return p != nil && slices.ContainsFunc(append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...), func(s corev1.ContainerStatus) bool {
				return s.Name == name && s.State.Running != nil && s.RestartCount == restarts
			})
		})
	}
	made("i", 1)
	runs("i", 0)
	w.cri.Exit("i", 0)
	for _, name := range []string{"boss", "worker", "done"} {
		runs(name, 0)
	}
	w.cri.Exit("done", 0)
	w.cri.Exit("boss", 42)
	// First the init container again, then all others, also the one that was done.
	made("i", 2)
	runs("i", 1)
	if n := len(w.cri.Containers("worker")); n != 1 {
		t.Errorf("%d workers before the init container has ended", n)
	}
	p := w.wait("p", "told of it", func(p *corev1.Pod) bool { return condition(p, corev1.AllContainersRestarting) == corev1.ConditionTrue })
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		t.Errorf("phase %s", p.Status.Phase)
	}
	w.cri.Exit("i", 0)
	for _, name := range []string{"boss", "worker", "done"} {
		runs(name, 1)
	}
	w.wait("p", "quiet again", func(p *corev1.Pod) bool { return condition(p, corev1.AllContainersRestarting) == "" })
	if n := len(w.cri.Sandboxes()); n != 1 {
		t.Errorf("%d sandboxes", n)
	}
	if !slices.ContainsFunc(w.events.list(), func(e string) bool {
		return strings.HasPrefix(e, "Normal Killing Stopping container worker: all containers")
	}) {
		t.Errorf("events: %q", w.events.list())
	}
	// An end by another code is the end.
	for _, name := range []string{"boss", "worker", "done"} {
		w.cri.Exit(name, 1)
	}
	w.wait("p", "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
}
