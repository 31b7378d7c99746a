package agent

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/shutdown"
	"knarr.dev/knarr/client"
)

// machine is an inhibitor whose shutdown is a test's.
type machine struct {
	down   chan bool
	locks  chan string // "held" and "let go"
	refuse error
}

func (m *machine) MaxDelay(context.Context) (time.Duration, error) { return time.Second, nil }
func (m *machine) Watch(context.Context) (<-chan bool, error)      { return m.down, nil }
func (m *machine) Close() error                                    { return nil }
func (m *machine) Inhibit(context.Context) (io.Closer, error) {
	m.locks <- "held"
	return closer(func() { m.locks <- "let go" }), m.refuse
}

type closer func()

func (c closer) Close() error { c(); return nil }

func (w *world) lock(m *machine, want string) {
	w.t.Helper()
	select {
	case got := <-m.locks:
		if got != want {
			w.t.Fatalf("the lock is %s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		w.t.Fatalf("the lock was never %s", want)
	}
}

// nodeReady waits for the node's condition Ready.
func (w *world) nodeReady(want corev1.ConditionStatus, message string) {
	w.t.Helper()
	found := make(chan struct{}, 100)
	defer w.api.Cache(client.Nodes, "").Subscribe(func(e client.Event) {
		for _, c := range e.Object.(*corev1.Node).Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == want && strings.Contains(c.Message, message) && (want == corev1.ConditionTrue || c.Reason == "KubeletNotReady") {
				found <- struct{}{}
			}
		}
	})()
	select {
	case <-found:
	case <-time.After(10 * time.Second):
		w.t.Fatalf("the node's Ready was never %s: %s", want, message)
	}
}

func TestTheMachineGoesDown(t *testing.T) {
	m := &machine{down: make(chan bool, 2), locks: make(chan string, 8)}
	w := newWorld(t, func(c *Config) {
		c.ShutdownPeriods = shutdown.Periods(60*time.Second, 20*time.Second)
		c.Inhibitor = func(context.Context) (Inhibitor, error) { return m, nil }
	})
	var mu sync.Mutex
	var order []string
	w.cri.OnStop = func(name string, timeout int64) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, name)
		if want := map[string]int64{"ordinary": 40, "brief": 7, "critical": 20}[name]; timeout != want {
			t.Errorf("container %s has %d s, want %d", name, timeout, want)
		}
	}
	w.run()
	w.lock(m, "held")
	add := func(name string, priority int32, grace int64) {
		w.pod(name, func(p *corev1.Pod) {
			p.Spec.Containers[0].Name = name
			p.Spec.Priority, p.Spec.TerminationGracePeriodSeconds = &priority, &grace
		})
		w.wait(name, "running", running)
	}
	add("critical", 2000000000, 600)
	add("ordinary", 0, 600)
	add("brief", 5, 7)
	m.down <- true
	for _, name := range []string{"ordinary", "brief", "critical"} {
		p := w.wait(name, "ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." || condition(p, corev1.DisruptionTarget) != corev1.ConditionTrue {
			t.Errorf("%s: %+v", name, p.Status)
		}
	}
	w.lock(m, "let go")
	mu.Lock()
	if len(order) != 3 || order[2] != "critical" || !slices.Contains(order[:2], "brief") {
		t.Errorf("ended in the order %q", order)
	}
	mu.Unlock()
	w.nodeReady(corev1.ConditionFalse, "node is shutting down")
	w.pod("late", nil)
	p := w.wait("late", "refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "NodeShutdown" || p.Status.Message != "Pod was rejected as the node is shutting down." {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
	// It was called off: the node is there again, and ready for the next time.
	m.down <- false
	w.lock(m, "held")
	w.nodeReady(corev1.ConditionTrue, "")
	w.pod("after", nil)
	w.wait("after", "running", running)
}

func TestPodsThatDoNotEndHoldNobodyUp(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.ShutdownPeriods = []shutdown.Period{{Priority: 0, Grace: 100 * time.Millisecond}}
		c.Inhibitor = func(context.Context) (Inhibitor, error) { return nil, errors.New("no bus") }
	})
	block := make(chan struct{})
	w.cri.OnStop = func(string, int64) { <-block }
	a := w.run()
	defer close(block)
	w.pod("p", nil)
	w.wait("p", "running", running)
	a.Shutdown(t.Context())
	w.runtime("the container, which does not end", func(r *critest.Runtime) bool { return len(r.Containers("c")) == 1 })
}
