package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
)

type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) Event(_ client.Object, _, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, reason+": "+message)
}

func (e *events) has(s string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.all {
		if strings.Contains(x, s) {
			return true
		}
	}
	return false
}

func node(name, cpu string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("110")}}}
}

func pod(name, cpu string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: corev1.PodSpec{
		SchedulerName: corev1.DefaultSchedulerName,
		Containers: []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}}}}}
}

// bench is a running scheduler on an in-memory client.
type bench struct {
	*clienttest.Fake
	t      *testing.T
	events *events
}

func start(t *testing.T) *bench {
	b := &bench{Fake: clienttest.New(), t: t, events: &events{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := New(Config{Client: b, Recorder: b.events, Clock: clock.RealClock{}, Log: slog.New(slog.DiscardHandler), Seed: 1})
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) create(r client.Resource, o client.Object) {
	b.t.Helper()
	if _, err := b.Create(b.t.Context(), client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}, o); err != nil {
		b.t.Fatal(err)
	}
}

// until waits until a pod satisfies cond.
func (b *bench) until(name string, cond func(*corev1.Pod) bool) {
	b.t.Helper()
	ok := make(chan struct{}, 1)
	defer b.Cache(client.Pods, "").Subscribe(func(ev client.Event) {
		if p := ev.Object.(*corev1.Pod); p.Name == name && cond(p) {
			select {
			case ok <- struct{}{}:
			default:
			}
		}
	})()
	select {
	case <-ok:
	case <-time.After(10 * time.Second):
		p, _ := b.Cache(client.Pods, "").Get("a", name)
		b.t.Fatalf("pod %s: not within 10 s; is %+v; events %q", name, p, b.events.all)
	}
}

func bound(p *corev1.Pod) bool { return p.Spec.NodeName != "" }

func message(m string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		c := scheduled(p)
		return c != nil && c.Status == corev1.ConditionFalse && c.Message == m
	}
}

func TestPodWaitsForANodeAndThenForRoom(t *testing.T) {
	b := start(t)
	b.create(client.Pods, pod("one", "1"))
	b.until("one", message("no nodes available to schedule pods"))
	b.create(client.Nodes, node("n1", "1"))
	b.until("one", bound)
	b.create(client.Pods, pod("two", "1"))
	b.until("two", message("0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."))
	zero := int64(0)
	if err := b.Delete(t.Context(), client.Key{Resource: client.Pods, Namespace: "a", Name: "one"}, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	b.until("two", bound)
	if !b.events.has("FailedScheduling: 0/1 nodes are available") {
		t.Errorf("no FailedScheduling event in %q", b.events.all)
	}
}

func TestGatedPodWaitsForItsGates(t *testing.T) {
	b := start(t)
	b.create(client.Nodes, node("n1", "1"))
	p := pod("one", "1")
	p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "x"}}
	b.create(client.Pods, p)
	b.until("one", func(p *corev1.Pod) bool {
		c := scheduled(p)
		return c != nil && c.Reason == corev1.PodReasonSchedulingGated
	})
	k := client.Key{Resource: client.Pods, Namespace: "a", Name: "one"}
	now, err := client.Get[*corev1.Pod](t.Context(), b, k)
	if err != nil {
		t.Fatal(err)
	}
	now = now.DeepCopy()
	now.Spec.SchedulingGates = nil
	if _, err := b.Update(t.Context(), k, now); err != nil {
		t.Fatal(err)
	}
	b.until("one", bound)
}

func TestFailedBindingIsTriedAgain(t *testing.T) {
	b := start(t)
	var once sync.Once
	b.React = func(verb string, k client.Key, _ client.Object) (err error) {
		if k.Subresource == "binding" {
			once.Do(func() { err = fmt.Errorf("store is away") })
		}
		return err
	}
	b.create(client.Nodes, node("n1", "1"))
	b.create(client.Pods, pod("one", "1"))
	b.until("one", bound)
	if !b.events.has("store is away") {
		t.Errorf("the failure was not reported: %q", b.events.all)
	}
}

func TestOthersPodsAreLeftAlone(t *testing.T) {
	b := start(t)
	b.create(client.Nodes, node("n1", "1"))
	other := pod("other", "1")
	other.Spec.SchedulerName = "mine"
	b.create(client.Pods, other)
	b.create(client.Pods, pod("ours", "1"))
	b.until("ours", bound)
	if o, _ := client.Cached[*corev1.Pod](b.Cache(client.Pods, ""), "a", "other"); bound(o) {
		t.Error("a pod of another scheduler was bound")
	}
}

// BenchmarkCreatedToBound measures from a pod's creation to its binding.
func BenchmarkCreatedToBound(b *testing.B) {
	f := clienttest.New()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	s := New(Config{Client: f, Recorder: &events{}, Clock: clock.RealClock{}, Log: slog.New(slog.DiscardHandler)})
	go func() { defer close(done); _ = s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if _, err := f.Create(ctx, client.Key{Resource: client.Nodes, Name: "n"}, node("n", "1000")); err != nil {
		b.Fatal(err)
	}
	gone := make(chan struct{}, 16)
	defer f.Cache(client.Pods, "").Subscribe(func(ev client.Event) {
		if ev.Type == client.Modified && bound(ev.Object.(*corev1.Pod)) && ev.Object.GetDeletionTimestamp() == nil {
			gone <- struct{}{}
		}
	})()
	zero := int64(0)
	for b.Loop() {
		k := client.Key{Resource: client.Pods, Namespace: "a", Name: "p"}
		if _, err := f.Create(ctx, k, pod("p", "1m")); err != nil {
			b.Fatal(err)
		}
		<-gone
		b.StopTimer()
		if err := f.Delete(ctx, k, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
