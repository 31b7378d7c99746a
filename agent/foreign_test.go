package agent

import (
	"context"
	"errors"
	"regexp"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/client"
)

// A status that somebody else wrote stands for ten seconds, or until the pod has
// news of its own; a readiness gate is news.
func TestForeignStatusStands(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now().Truncate(time.Second))
	w := newWorld(t, withClock(clk))
	w.run()
	w.pod("p", func(p *corev1.Pod) { p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}} })
	w.wait("p", "running", running)
	w.runtime("somebody who follows it", (*critest.Runtime).Followed)
	write := func(status string) {
		t.Helper()
		k := client.Key{Resource: client.Pods, Namespace: "default", Name: "p"}.Sub("status")
		if _, err := w.api.Patch(context.Background(), k, client.Patch{Type: types.StrategicMergePatchType, Data: []byte(`{"status":` + status + `}`)}); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"conditions":[{"type":"gate","status":"True"}]}`)
	w.wait("p", "ready by its gate", ready)

	write(`{"conditions":[{"type":"Ready","status":"False","reason":"Mine"}]}`)
	w.cri.Exit("c", 1) // the pod's own news
	w.wait("p", "restarted", func(p *corev1.Pod) bool {
		return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p)
	})

	write(`{"conditions":[{"type":"Ready","status":"False","reason":"Mine"}]}`)
	began := clk.Now()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				clk.Step(time.Second)
			}
		}
	}()
	w.wait("p", "ready again", ready)
	if took := clk.Since(began); took < 8*time.Second || took > 30*time.Second {
		t.Errorf("the foreign status stood for %v, want about 10 s", took)
	}
}

// Why a pod waits, and until when, is said where people look.
func TestWaitingNamesCauseAndNextTry(t *testing.T) {
	w := newWorld(t)
	w.cri.Fail = func(method, _ string) error {
		if method == "RunPodSandbox" {
			return errors.New("no more addresses")
		}
		return nil
	}
	w.run()
	w.pod("p", nil)
	w.wait("p", "waiting with a reason", func(p *corev1.Pod) bool {
		return waiting("ContainerCreating")(p) && regexp.MustCompile(`^FailedCreatePodSandBox: Failed to create pod sandbox: no more addresses; next try at 20\d\d-.*Z$`).
			MatchString(p.Status.ContainerStatuses[0].State.Waiting.Message)
	})
}
