package watchcache

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/api/kind"
)

// After a burst the past is forgotten without another write, but for the newest
// events; a watch that has seen all goes on, one that has not is told.
func TestTrimForgetsABurst(t *testing.T) {
	start := time.Unix(1, 0)
	h := &Hub{grown: make(chan struct{}, 1)}
	c := newCache(h, &kind.Kind{})
	const n = 10 * minRing
	for i := range n {
		c.apply("ns/a", NewItem("ns/a", &corev1.ConfigMap{}, int64(i+1)), int64(i+1), start)
	}
	h.revision.Store(n)
	if len(h.grown) == 0 {
		t.Fatal("the hub was not told that there is something to forget")
	}
	behind, err := c.Watch(1)
	if err != nil {
		t.Fatal(err)
	}
	current, err := c.Watch(n)
	if err != nil {
		t.Fatal(err)
	}
	if drop, next := c.trim(start.Add(keepFor)); drop != 0 || next != start.Add(keepFor) || len(c.ring) != n {
		t.Fatalf("young events were forgotten: %d of %d left", len(c.ring), n)
	}
	if drop, next := c.trim(start.Add(keepFor + 1)); drop != n-minRing || !next.IsZero() || len(c.ring) != minRing {
		t.Fatalf("%d events left, want %d", len(c.ring), minRing)
	}
	if _, err := behind.Poll(); err != ErrExpired {
		t.Errorf("a watcher in the forgotten past got %v, want %v", err, ErrExpired)
	}
	if _, err := c.Watch(n - minRing - 1); err != ErrExpired {
		t.Errorf("a watch from the forgotten past got %v, want %v", err, ErrExpired)
	}
	if _, err := c.Watch(n - minRing); err != nil {
		t.Errorf("a watch from the oldest event kept: %v", err)
	}
	c.apply("ns/a", NewItem("ns/a", &corev1.ConfigMap{}, n+1), n+1, start.Add(2*keepFor))
	if events, err := current.Poll(); err != nil || len(events) != 1 || events[0].Revision != n+1 {
		t.Errorf("a watcher that had seen all got %v, %v", events, err)
	}
}
