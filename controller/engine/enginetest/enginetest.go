// Package enginetest runs controllers on an in-memory client for tests.
package enginetest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine"
)

// Bench is a running set of controllers.
type Bench struct {
	*clienttest.Fake
	Events *Recorder
	t      testing.TB
}

// Recorder keeps events as "Type Reason message".
type Recorder struct {
	mu  sync.Mutex
	all []string
	new chan struct{}
}

// Event implements client.Recorder.
func (r *Recorder) Event(_ client.Object, eventType, reason, message string) {
	r.mu.Lock()
	r.all = append(r.all, eventType+" "+reason+" "+message)
	r.mu.Unlock()
	select {
	case r.new <- struct{}{}:
	default:
	}
}

// Has tells whether an event was recorded.
func (r *Recorder) Has(event string) bool { return r.Count(event) > 0 }

// Count tells how often an event was recorded.
func (r *Recorder) Count(event string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.all {
		if e == event {
			n++
		}
	}
	return n
}

func (r *Recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%q", r.all)
}

// Start runs controllers on f until the test ends.
func Start(t testing.TB, f *clienttest.Fake, clk clock.WithTicker, controllers ...engine.Controller) *Bench {
	t.Helper()
	b := &Bench{Fake: f, Events: &Recorder{new: make(chan struct{}, 1)}, t: t}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	go func() { done <- engine.Run(ctx, f, b.Events, clk, log, controllers) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("engine: %v", err)
		}
	})
	return b
}

// Until waits until cond holds; it is asked again after every change of the
// given resources and every event.
func (b *Bench) Until(what string, cond func() bool, resources ...client.Resource) {
	b.t.Helper()
	changed := make(chan struct{}, 1)
	for _, r := range resources {
		defer b.Cache(r, "").Subscribe(func(client.Event) {
			select {
			case changed <- struct{}{}:
			default:
			}
		})()
	}
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for !cond() {
		select {
		case <-changed:
		case <-b.Events.new:
		case <-deadline.C:
			b.t.Fatalf("%s: not within 10 s; events: %s", what, b.Events)
		}
	}
}

// Make creates an object or ends the test.
func (b *Bench) Make(r client.Resource, obj client.Object) client.Object {
	b.t.Helper()
	out, err := b.Create(b.t.Context(), client.Key{Resource: r, Namespace: obj.GetNamespace(), Name: obj.GetName()}, obj)
	if err != nil {
		b.t.Fatalf("creating %s %s/%s: %v", r.Resource, obj.GetNamespace(), obj.GetName(), err)
	}
	return out
}

// Change updates an object, or a subresource of it, by fn; it retries conflicts.
func Change[T client.Object](b *Bench, k client.Key, fn func(T)) {
	b.t.Helper()
	main := k
	main.Subresource = ""
	obj, err := client.Get[T](b.t.Context(), b, main)
	if err != nil {
		b.t.Fatal(err)
	}
	next := obj.DeepCopyObject().(T)
	next.SetResourceVersion("")
	fn(next)
	if _, err := b.Update(b.t.Context(), k, next); err != nil {
		b.t.Fatalf("updating %s: %v", k, err)
	}
}
