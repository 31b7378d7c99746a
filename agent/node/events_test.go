package node

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testclock "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
)

type events []string

func (e *events) Event(_ client.Object, kind, reason, message string) {
	*e = append(*e, fmt.Sprintf("%s %s %s", kind, reason, message))
}

func TestNodeEvents(t *testing.T) {
	var told events
	pressure, ending := map[corev1.NodeConditionType]bool{}, false
	runtime := critest.New().Client(t)
	clk := testclock.NewFakeClock(time.Unix(1000, 0))
	cfg := Config{Name: "n1", Client: clienttest.New(), CRI: runtime, Recorder: &told, Capacity: corev1.ResourceList{}, Info: corev1.NodeSystemInfo{BootID: "first"},
		Pressure: func() map[corev1.NodeConditionType]bool { return pressure }, Ending: func() bool { return ending },
		Clock: clk, Log: slog.New(slog.DiscardHandler)}
	r := New(cfg)
	expect := func(what string, want ...string) {
		t.Helper()
		for i, w := range want {
			if w != "Starting" && w != "Rebooted" {
				want[i] = "Normal " + w + " Node n1 status is now: " + w
			}
		}
		if err := r.report(t.Context()); err != nil && err != errNotReady {
			t.Fatal(err)
		}
		got := slices.Clone(told)
		told = nil
		for i, g := range got {
			switch g {
			case "Normal Starting Starting kubelet.":
				got[i] = "Starting"
			case "Warning Rebooted Node n1 has been rebooted, boot id: second":
				got[i] = "Rebooted"
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("a new node", "Starting", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady")
	expect("nothing new")
	clk.Step(time.Hour)
	expect("a heartbeat")
	pressure[corev1.NodeMemoryPressure], pressure[corev1.NodePIDPressure], ending = true, true, true
	expect("trouble", "NodeHasInsufficientMemory", "NodeHasInsufficientPID", "NodeNotReady")
	pressure[corev1.NodeMemoryPressure], pressure[corev1.NodePIDPressure], pressure[corev1.NodeDiskPressure] = false, false, true
	expect("other trouble", "NodeHasSufficientMemory", "NodeHasDiskPressure", "NodeHasSufficientPID")
	// Another agent of the same node, after a boot.
	pressure, ending, cfg.Info.BootID = map[corev1.NodeConditionType]bool{}, false, "second"
	r = New(cfg)
	expect("a boot", "Starting", "Rebooted", "NodeHasNoDiskPressure", "NodeReady")
	// The node controller has not heard of it, or somebody deleted it.
	lost := r.Node().DeepCopy()
	for i := range lost.Status.Conditions {
		lost.Status.Conditions[i].Status = corev1.ConditionUnknown
	}
	r.set(lost)
	expect("lost", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady")
	if err := cfg.Client.Delete(t.Context(), r.key(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.set(nil)
	expect("deleted", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady")
}

// An agent whose runtime does not answer is stuck.
func TestAlive(t *testing.T) {
	clk := testclock.NewFakeClock(time.Unix(1000, 0))
	r := New(Config{Name: "n1", Client: clienttest.New(), CRI: critest.New().Client(t), Recorder: new(events), Capacity: corev1.ResourceList{}, Clock: clk, Log: slog.New(slog.DiscardHandler)})
	clk.Step(time.Hour)
	if err := r.Alive(); err != nil {
		t.Errorf("before its first look: %v", err)
	}
	for _, c := range []struct {
		after time.Duration
		alive bool
	}{{checkInterval, true}, {stuckAfter + time.Second, false}, {0, true}} {
		if c.after == 0 || c.alive {
			if err := r.report(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		clk.Step(c.after)
		if err := r.Alive(); (err == nil) != c.alive {
			t.Errorf("after %s: %v", c.after, err)
		}
	}
}
