package engine_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/controller/engine/enginetest"
	"knarr.dev/knarr/controller/replicaset"
)

// lagging is a client whose cache of pods shows nothing new until it is let go.
type lagging struct {
	*clienttest.Fake
	gate *gate
}

func (l lagging) Cache(r client.Resource, selector string) client.Cache {
	c := l.Fake.Cache(r, selector)
	if r != client.Pods {
		return c
	}
	return l.gate.open(c)
}

// gate holds events back; what it let through is what its cache shows.
type gate struct {
	mu    sync.Mutex
	shown map[types.NamespacedName]client.Object
	held  []client.Event
	free  bool
	subs  []func(client.Event)
	start sync.Once
}

func (g *gate) open(c client.Cache) client.Cache {
	g.start.Do(func() { c.Subscribe(g.receive) })
	return g
}

func (g *gate) receive(ev client.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held = append(g.held, ev); g.free {
		g.flush()
	}
}

func (g *gate) flush() {
	for _, ev := range g.held {
		k := types.NamespacedName{Namespace: ev.Object.GetNamespace(), Name: ev.Object.GetName()}
		if g.shown[k] = ev.Object; ev.Type == client.Deleted {
			delete(g.shown, k)
		}
		for _, fn := range g.subs {
			go fn(ev) // a subscriber may read the cache
		}
	}
	g.held = nil
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free = true
	g.flush()
}

func (g *gate) Get(ns, name string) (client.Object, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	o, ok := g.shown[types.NamespacedName{Namespace: ns, Name: name}]
	return o, ok
}

func (g *gate) List(ns string, sel labels.Selector, visit func(client.Object) bool) {
	g.mu.Lock()
	var objs []client.Object
	for _, o := range g.shown {
		if (ns == "" || o.GetNamespace() == ns) && (sel == nil || sel.Matches(labels.Set(o.GetLabels()))) {
			objs = append(objs, o)
		}
	}
	g.mu.Unlock()
	for _, o := range objs {
		if !visit(o) {
			return
		}
	}
}

func (g *gate) WaitSynced(context.Context) error { return nil }

func (g *gate) Subscribe(fn func(client.Event)) func() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.subs = append(g.subs, fn)
	return func() {}
}

func TestLaggingCacheMakesNoPodTwice(t *testing.T) {
	f := clienttest.New()
	l := lagging{f, &gate{shown: map[types.NamespacedName]client.Object{}}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- engine.Run(ctx, l, nobody{}, clock.RealClock{}, slog.New(slog.DiscardHandler), []engine.Controller{replicaset.New()})
	}()
	t.Cleanup(func() { cancel(); <-done })
	n := int32(5)
	lb := map[string]string{"app": "x"}
	k := client.Key{Resource: client.ReplicaSets, Namespace: "a", Name: "x"}
	if _, err := f.Create(ctx, k, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}, Spec: appsv1.ReplicaSetSpec{
		Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: lb}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: lb}}}}); err != nil {
		t.Fatal(err)
	}
	status := make(chan int32, 100)
	defer f.Cache(client.ReplicaSets, "").Subscribe(func(ev client.Event) {
		if rs := ev.Object.(*appsv1.ReplicaSet); rs.Status.ObservedGeneration == rs.Generation {
			status <- rs.Status.Replicas
		}
	})()
	// Each change of the set is reconciled while the cache shows no pod.
	for i := range 5 {
		waitFor(t, status, func(int32) bool { return true })
		rs, err := client.Get[*appsv1.ReplicaSet](ctx, f, k)
		if err != nil {
			t.Fatal(err)
		}
		next := rs.DeepCopy()
		next.ResourceVersion, next.Spec.MinReadySeconds = "", int32(i+1)
		if _, err := f.Update(ctx, k, next); err != nil {
			t.Fatal(err)
		}
	}
	l.gate.release()
	waitFor(t, status, func(n int32) bool { return n == 5 })
	if got := len(client.ListCached[*corev1.Pod](f.Cache(client.Pods, ""), "a", nil)); got != 5 {
		t.Errorf("%d pods were made, want 5", got)
	}
}

func waitFor(t *testing.T, status <-chan int32, ok func(int32) bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case n := <-status:
			if ok(n) {
				return
			}
		case <-deadline:
			t.Fatal("no status within 10 s")
		}
	}
}

type nobody struct{}

func (nobody) Event(client.Object, string, string, string) {}

func TestWatchOfAllPicksUpNewResources(t *testing.T) {
	seen := make(chan string, 16)
	all := engine.Controller{
		Name: "test",
		Watches: []engine.Watch{{All: true, KeysOf: func(_ *engine.Env, r client.Resource, ev client.Event) []engine.Key {
			return []engine.Key{{Namespace: r.Resource, Name: ev.Object.GetName()}}
		}}},
		New: func(*engine.Env) engine.Reconcile {
			return func(_ context.Context, key engine.Key) (time.Duration, error) { seen <- key.String(); return 0, nil }
		},
	}
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, all)
	widgets := client.Resource{Group: "example.com", Version: "v1", Resource: "widgets"}
	b.Make(widgets, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "w"}})
	crd := client.Resource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	b.Make(crd, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"}})
	deadline := time.After(10 * time.Second)
	for {
		select {
		case key := <-seen:
			if key == (types.NamespacedName{Namespace: "widgets", Name: "w"}).String() {
				return
			}
		case <-deadline:
			t.Fatal("objects of the new resource were not seen")
		}
	}
}
