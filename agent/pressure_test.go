package agent

import (
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/eviction"
	"knarr.dev/knarr/client"
)

// A node short of memory says so, evicts the pod that matters least, and takes no
// best-effort pods until it has enough again.
func TestPressure(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now().Truncate(time.Second))
	w := newWorld(t, withClock(clk))
	var mu sync.Mutex
	left := int64(1 << 30)
	w.cfg.Observe = func() eviction.Observation {
		mu.Lock()
		defer mu.Unlock()
		return eviction.Observation{eviction.MemoryAvailable: {Available: left, Capacity: 4 << 30}}
	}
	set := func(n int64) {
		mu.Lock()
		left = n
		mu.Unlock()
	}
	w.cri.OnStop = func(name string, _ int64) { set(1 << 30) } // its memory is free then
	stop := make(chan struct{})
	defer close(stop)
	w.run()
	low, high := int32(0), int32(1000)
	w.pod("low", func(p *corev1.Pod) { p.Spec.Priority = &low })
	w.pod("high", func(p *corev1.Pod) { p.Spec.Priority = &high })
	w.wait("low", "ready", ready)
	w.wait("high", "ready", ready)
	go func() { // time passes
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				clk.Step(time.Second)
			}
		}
	}()
	pressed := func(want corev1.ConditionStatus) {
		t.Helper()
		found := make(chan struct{})
		var once sync.Once
		defer w.api.Cache(client.Nodes, "").Subscribe(func(e client.Event) {
			for _, c := range e.Object.(*corev1.Node).Status.Conditions {
				if c.Type == corev1.NodeMemoryPressure && c.Status == want {
					once.Do(func() { close(found) })
				}
			}
		})()
		select {
		case <-found:
		case <-time.After(10 * time.Second):
			t.Fatalf("the node never had MemoryPressure %s", want)
		}
	}
	pressed(corev1.ConditionFalse)
	set(50 << 20)
	p := w.wait("low", "evicted", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "Evicted" || p.Status.Message != "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. " || condition(p, corev1.DisruptionTarget) != corev1.ConditionTrue {
		t.Errorf("status: %+v", p.Status)
	}
	w.event("Warning EvictionThresholdMet Attempting to reclaim memory")
	w.event("Warning Evicted The node was low on resource: memory.")
	pressed(corev1.ConditionTrue)
	w.wait("high", "still ready", ready)
	w.pod("besteffort", nil)
	p = w.wait("besteffort", "refused", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "Evicted" || p.Status.Message != "Pod was rejected: The node had condition: [MemoryPressure]. " {
		t.Errorf("status: %+v", p.Status)
	}
	w.pod("burstable", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Mi")}
	})
	w.wait("burstable", "ready", ready)
	pressed(corev1.ConditionFalse) // after five minutes
}

// A critical pod for which there is no room has others give way.
func TestCriticalPodPreempts(t *testing.T) {
	w := newWorld(t)
	w.cfg.MaxPods = 2
	w.run()
	w.node()
	low, mid, critical := int32(0), int32(10), int32(2000000000)
	w.pod("low", func(p *corev1.Pod) { p.Spec.Priority = &low })
	w.pod("mid", func(p *corev1.Pod) { p.Spec.Priority = &mid })
	w.wait("low", "ready", ready)
	w.wait("mid", "ready", ready)
	w.pod("critical", func(p *corev1.Pod) { p.Spec.Priority = &critical })
	w.wait("critical", "ready", ready)
	p := w.wait("low", "preempted", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "Preempting" || p.Status.Message != "Preempted in order to admit critical pod" {
		t.Errorf("status: %+v", p.Status)
	}
	w.wait("mid", "still ready", ready)
}
