package watchcache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/store"
)

func things() *kind.Kind {
	return &kind.Kind{Group: "example.com", Version: "v1", Kind: "Thing", Resource: "things", Storage: "example.com/things",
		New: func() kind.Object { return &corev1.ConfigMap{} }}
}

func runHub(t *testing.T) (*Hub, store.Store) {
	t.Helper()
	s := store.NewMemory()
	return runHubOn(t, s), s
}

func runHubOn(t *testing.T, s store.Store) *Hub {
	t.Helper()
	h, err := Open(t.Context(), s, nil, func(k *kind.Kind, _ string, value []byte) (kind.Object, error) {
		obj := k.New()
		return obj, json.Unmarshal(value, obj)
	}, nil, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	return h
}

func write(t *testing.T, s store.Store, k *kind.Kind, name string, remove bool) int64 {
	t.Helper()
	b, err := json.Marshal(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil {
		t.Fatal(err)
	}
	w := store.Write{Key: Key(k, name), Value: b}
	if remove {
		w = store.Write{Key: Key(k, name), Delete: true}
	}
	r, err := s.Range(t.Context(), w.Key, store.RangeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range r.KVs {
		if kv.Key == w.Key {
			w.If = kv.Revision
		}
	}
	out, err := s.Write(t.Context(), w)
	if err != nil || !out.Done {
		t.Fatalf("write %s: %v %v", name, out, err)
	}
	return out.Revision
}

// A cache that is attached, again and again, while objects come and go holds what
// the store holds.
func TestAttachMissesNothing(t *testing.T) {
	h, s := runHub(t)
	k := things()
	write(t, s, k, "before", false)
	var wg sync.WaitGroup
	var last int64
	wg.Go(func() {
		for i := range 300 {
			last = write(t, s, k, fmt.Sprint("n", i%20), i%3 == 2)
		}
	})
	var c *Cache
	for range 20 {
		c = attach(t, h, k)
	}
	wg.Wait()
	if err := h.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	r, err := s.Range(t.Context(), Key(k, ""), store.RangeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Len() != len(r.KVs) {
		t.Errorf("the cache holds %d objects, the store %d", c.Len(), len(r.KVs))
	}
	for _, kv := range r.KVs {
		if it := c.Get(kv.Key[len(Key(k, "")):]); it == nil || it.Revision != kv.Revision {
			t.Errorf("%s: %v, want revision %d", kv.Key, it, kv.Revision)
		}
	}
}

// Watchers end when their kind changes or goes; the cache is empty then, and the
// same one when the kind comes back.
func TestDetachEndsWatchers(t *testing.T) {
	h, s := runHub(t)
	k := things()
	c := attach(t, h, k)
	_, w := c.SnapshotAndWatch()
	write(t, s, k, "x", false)
	if events, err := w.Next(t.Context()); err != nil || len(events) != 1 || events[0].Type != Added {
		t.Fatalf("events %v %v", events, err)
	}
	if err := h.Wait(t.Context(), write(t, s, k, "last", false)); err != nil {
		t.Fatal(err)
	}
	h.Detach(k)
	if events, err := w.Next(t.Context()); err != nil || len(events) != 1 || events[0].Type != Added {
		t.Errorf("what happened before the detachment: %v %v", events, err)
	}
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("after the detachment: %v", err)
	}
	if c.Len() != 0 {
		t.Errorf("%d objects in a detached cache", c.Len())
	}
	if err := h.Wait(t.Context(), write(t, s, k, "y", false)); err != nil {
		t.Fatal(err)
	}
	if c.Len() != 0 {
		t.Errorf("%d objects in a detached cache after a write", c.Len())
	}
	if again := attach(t, h, k); again != c || c.Len() != 3 {
		t.Errorf("attached again: %v, %d objects", again == c, c.Len())
	}
	if _, err := c.Watch(1); !errors.Is(err, ErrExpired) {
		t.Errorf("a watch from before: %v", err)
	}
}

func attach(t *testing.T, h *Hub, k *kind.Kind) (c *Cache) {
	t.Helper()
	if err := h.Attach(t.Context(), k, func(cache *Cache) { c = cache }); err != nil {
		t.Fatal(err)
	}
	return c
}

// slow is a store whose reads wait, when asked to.
type slow struct {
	store.Store
	gate atomic.Pointer[chan struct{}] // closed: go on
	came chan struct{}
}

func (s *slow) Range(ctx context.Context, prefix string, o store.RangeOptions) (*store.RangeResult, error) {
	if gate := s.gate.Load(); gate != nil {
		s.came <- struct{}{}
		<-*gate
	}
	return s.Store.Range(ctx, prefix, o)
}

// While the objects of a kind that was declared differently are being read, reads
// are current and watches go on; who then finds the watch ended finds the new kind.
func TestAttachIsOneMoment(t *testing.T) {
	s := &slow{Store: store.NewMemory(), came: make(chan struct{})}
	h := runHubOn(t, s)
	k := things()
	c := attach(t, h, k)
	if err := h.Wait(t.Context(), write(t, s.Store, k, "a", false)); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		_, w := c.SnapshotAndWatch()
		gate := make(chan struct{})
		s.gate.Store(&gate)
		var published atomic.Bool
		done := make(chan error)
		go func() { done <- h.Attach(t.Context(), k, func(*Cache) { published.Store(true) }) }()
		<-s.came
		s.gate.Store(nil)
		at := write(t, s.Store, k, "b", false)
		if err := h.Wait(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		if it := c.Get("b"); it == nil || it.Revision != at {
			t.Errorf("while the kind changes, a read shows %v, want revision %d", it, at)
		}
		if events, err := w.Next(t.Context()); err != nil || len(events) != 1 {
			t.Errorf("while the kind changes, a watch shows %v, %v", events, err)
		}
		close(gate)
		if events, err := w.Next(t.Context()); !errors.Is(err, ErrEnded) || !published.Load() {
			t.Errorf("watch %v, %v; published: %v", events, err, published.Load())
		}
		w.Stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if it := c.Get("b"); it == nil || it.Revision != at {
			t.Errorf("after the change, a read shows %v, want revision %d", it, at)
		}
	}
}
