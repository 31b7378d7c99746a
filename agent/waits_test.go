package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/critest"
)

// message is that of a condition.
func message(p *corev1.Pod, kind corev1.PodConditionType) string {
	if p != nil {
		for _, c := range p.Status.Conditions {
			if c.Type == kind {
				return c.Message
			}
		}
	}
	return ""
}

// Whatever a pod waits for, a condition says why, and when it is tried again.
func TestWhyAPodWaits(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	w := newWorld(t, withClock(clk))
	w.cri.Fail = func(method, detail string) error {
		switch {
		case method == "RunPodSandbox" && detail == "sandbox":
			return errors.New("no network")
		case method == "PullImage" && strings.HasPrefix(detail, "lost"):
			return errors.New("not found")
		}
		return nil
	}
	w.run()
	w.runtime("somebody who follows it", (*critest.Runtime).Followed)
	// The first status is held back for a moment, which this clock does not pass by itself.
	after := func(event string) {
		t.Helper()
		w.event(event)
		clk.Step(150 * time.Millisecond)
	}
	says := func(pod string, kind corev1.PodConditionType, want string) {
		t.Helper()
		w.wait(pod, string(kind)+" says "+want, func(p *corev1.Pod) bool { return strings.Contains(message(p, kind), want) })
	}
	w.pod("sandbox", nil)
	after("Warning FailedCreatePodSandBox")
	const box = "FailedCreatePodSandBox: Failed to create pod sandbox: no network; next try at 2030-01-02T03:04:05Z"
	says("sandbox", corev1.PodReadyToStartContainers, box)
	says("sandbox", corev1.ContainersReady, box)
	w.pod("volume", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}}}
	})
	after("Warning FailedMount")
	says("volume", corev1.ContainersReady, `containers with unready status: [c]; FailedMount: MountVolume.SetUp failed for volume "v" : configmap "none" not found; next try at 2030-01-02T03:04:05Z`)
	w.pod("image", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "lost:1" })
	after("Warning Failed Failed to pull")
	says("image", corev1.ContainersReady, "container c: ErrImagePull: not found; next try at 2030-01-02T03:04:06Z")
	w.pod("crash", func(p *corev1.Pod) { p.Spec.Containers[0].Name = "ends" })
	for n := range int32(2) {
		w.wait("crash", "running", func(p *corev1.Pod) bool { return running(p) && p.Status.ContainerStatuses[0].RestartCount == n })
		w.cri.ExitAt("ends", 3, clk.Now())
	}
	says("crash", corev1.ContainersReady, "container ends: CrashLoopBackOff: it ended with exit code 3 (Error); next try at 2030-01-02T03:04:15Z")
}
