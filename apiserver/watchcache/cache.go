package watchcache

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/btree"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/store"
)

// ErrExpired: the revision asked for, or the place of a slow watcher, is no
// longer kept. The client must list again.
var ErrExpired = errors.New("too old resource version")

// EventType is the API's name of a change.
type EventType string

// The types of events.
const (
	Added    EventType = "ADDED"
	Modified EventType = "MODIFIED"
	Deleted  EventType = "DELETED"
)

// Event is one change of one object; immutable and shared by all watchers.
type Event struct {
	Type     EventType
	Item     *Item // for Deleted: the last state, stamped with the deletion's revision
	Prev     *Item // nil for Added
	Revision int64

	at     time.Time
	frames [3]atomic.Pointer[[]byte]
}

// Frame returns the event's bytes in encoding slot n, made once by encode.
func (e *Event) Frame(n int, encode func(*Event) ([]byte, error)) ([]byte, error) {
	if p := e.frames[n].Load(); p != nil {
		return *p, nil
	}
	b, err := encode(e)
	if err != nil {
		return nil, err
	}
	e.frames[n].Store(&b)
	return b, nil
}

// How much of the past a cache keeps for watches that resume: at least minRing
// events; more, up to maxRing, while the oldest is younger than keepFor.
const (
	minRing = 256
	maxRing = 65536
	keepFor = 75 * time.Second
	// muchPast events forgotten are worth giving memory back to the system, once no
	// more follow within a trimPause.
	muchPast  = 4096
	trimPause = 2 * time.Second
)

// ErrEnded: what is watched is no longer served, or differently. The client
// must watch again.
var ErrEnded = errors.New("the resource that is watched has changed")

// Cache is the current state of one kind.
type Cache struct {
	kind atomic.Pointer[kind.Kind]
	hub  *Hub

	mu       sync.RWMutex
	tree     *btree.BTreeG[*Item]
	snapshot *Snapshot // of tree as it is; nil after a change
	ring     []*Event  // ring[i] has sequence first+i
	first    int
	floor    int64 // events up to this revision may be missing from the ring
	watchers map[*Watcher]struct{}
	epoch    int      // raised when the kind behind the cache changes
	rest     []*Event // the ring of the epoch before, from number restAt on
	restAt   int

	mode   mode
	late   []store.Event // kept while the cache is being filled
	filled int64         // events up to this revision are in the tree, or were replaced with it

	changes atomic.Int64
}

// Kind is the kind whose objects are stored here.
func (c *Cache) Kind() *kind.Kind { return c.kind.Load() }

// Changes counts the changes since the start: as long as it stays the same, so
// does the state.
func (c *Cache) Changes() int64 { return c.changes.Load() }

func newCache(hub *Hub, k *kind.Kind) *Cache {
	c := &Cache{hub: hub, tree: newTree(), watchers: map[*Watcher]struct{}{}}
	c.kind.Store(k)
	return c
}

func newTree() *btree.BTreeG[*Item] {
	return btree.NewG(32, func(a, b *Item) bool { return a.Key < b.Key })
}

// Get returns the object with a key, or nil.
func (c *Cache) Get(key string) *Item {
	c.mu.RLock()
	defer c.mu.RUnlock()
	it, _ := c.tree.Get(&Item{Key: key})
	return it
}

// Len counts the objects.
func (c *Cache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.tree.Len()
}

// Snapshot is the state of a kind at one revision; immutable.
type Snapshot struct {
	Revision int64
	tree     *btree.BTreeG[*Item]
}

// Snapshot returns the state now.
func (c *Cache) Snapshot() *Snapshot {
	rev := c.hub.Revision() // before the tree: the tree may be newer, never older
	c.mu.RLock()
	s := c.snapshot
	c.mu.RUnlock()
	if s == nil {
		c.mu.Lock()
		if c.snapshot == nil {
			c.snapshot = &Snapshot{tree: c.tree.Clone(), Revision: c.lastRevision()}
		}
		s = c.snapshot
		c.mu.Unlock()
	}
	return &Snapshot{tree: s.tree, Revision: max(rev, s.Revision)}
}

// lastRevision is the revision of the newest event; mu is held.
func (c *Cache) lastRevision() int64 {
	if n := len(c.ring); n > 0 {
		return c.ring[n-1].Revision
	}
	return c.floor
}

// Len counts the snapshot's objects.
func (s *Snapshot) Len() int { return s.tree.Len() }

// Ascend visits the objects whose keys begin with prefix, from the first key
// at or after from, in order, until visit returns false.
func (s *Snapshot) Ascend(prefix, from string, visit func(*Item) bool) {
	s.tree.AscendGreaterOrEqual(&Item{Key: max(prefix, from)}, func(i *Item) bool {
		return strings.HasPrefix(i.Key, prefix) && visit(i)
	})
}

// apply records one change. Only the hub calls it, in revision order.
func (c *Cache) apply(key string, item *Item, revision int64, now time.Time) *Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	if revision <= c.filled {
		return nil
	}
	ev := &Event{Item: item, Revision: revision, at: now}
	if item == nil {
		prev, ok := c.tree.Delete(&Item{Key: key})
		if !ok {
			return nil
		}
		ev.Type, ev.Prev = Deleted, prev
		ev.Item = Stamped(key, prev.Object, revision)
	} else {
		prev, replaced := c.tree.ReplaceOrInsert(item)
		ev.Type = Added
		if replaced {
			ev.Type, ev.Prev = Modified, prev
		}
	}
	if ev.Prev != nil {
		ev.Prev.replaced()
	}
	if d := c.hub.detector; d != nil {
		if ev.Prev != nil {
			d.goes(ev.Prev)
		}
		if item != nil {
			d.came(item)
		}
	}
	c.snapshot = nil
	c.changes.Add(1)
	c.push(ev, now)
	for w := range c.watchers {
		w.wake()
	}
	return ev
}

func (c *Cache) push(ev *Event, now time.Time) {
	n := len(c.ring)
	if n >= maxRing || n >= minRing && now.Sub(c.ring[0].at) > keepFor {
		drop := max(1, n/8)
		c.floor = c.ring[drop-1].Revision
		c.ring = append(make([]*Event, 0, n), c.ring[drop:]...)
		c.first += drop
	}
	c.ring = append(c.ring, ev)
	if len(c.ring) > minRing {
		select {
		case c.hub.grown <- struct{}{}:
		default: // the hub knows
		}
	}
}

// trim forgets what has aged: push does so only when the next event comes, and
// after a burst of writes it may never. It tells how many events it dropped, and
// when the next one ages: zero if none is to be forgotten.
func (c *Cache) trim(now time.Time) (drop int, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.ring)-drop > minRing && now.Sub(c.ring[drop].at) > keepFor {
		drop++
	}
	if drop > 0 {
		c.floor = c.ring[drop-1].Revision
		c.ring = append([]*Event(nil), c.ring[drop:]...)
		c.first += drop
	}
	if len(c.ring) > minRing {
		next = c.ring[0].at.Add(keepFor)
	}
	return drop, next
}

// Watcher is a cursor in a cache's events. Next must be called from one
// goroutine at a time.
type Watcher struct {
	c        *Cache
	next     int // sequence of the next event; guarded by c.mu
	progress int64
	epoch    int
	notify   chan struct{}
}

// Watch starts after the given revision. ErrExpired if what came after it is no
// longer known.
func (c *Cache) Watch(after int64) (*Watcher, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if after < c.floor {
		return nil, ErrExpired
	}
	i := len(c.ring)
	for i > 0 && c.ring[i-1].Revision > after {
		i--
	}
	w := &Watcher{c: c, next: c.first + i, progress: after, epoch: c.epoch, notify: make(chan struct{}, 1)}
	c.watchers[w] = struct{}{}
	w.wake()
	return w, nil
}

// SnapshotAndWatch returns the state now and a watcher of all that follows it.
func (c *Cache) SnapshotAndWatch() (*Snapshot, *Watcher) {
	rev := c.hub.Revision()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.snapshot == nil {
		c.snapshot = &Snapshot{tree: c.tree.Clone(), Revision: c.lastRevision()}
	}
	s := &Snapshot{tree: c.snapshot.tree, Revision: max(rev, c.snapshot.Revision)}
	w := &Watcher{c: c, next: c.first + len(c.ring), progress: s.Revision, epoch: c.epoch, notify: make(chan struct{}, 1)}
	c.watchers[w] = struct{}{}
	return s, w
}

func (w *Watcher) wake() {
	select {
	case w.notify <- struct{}{}:
	default:
	}
}

// Ready is signalled when Poll may have something new.
func (w *Watcher) Ready() <-chan struct{} { return w.notify }

// Poll returns the events since the last call, without waiting. ErrExpired if
// the watcher was too slow, ErrEnded if the kind has changed.
func (w *Watcher) Poll() ([]*Event, error) {
	rev := w.c.hub.Revision()
	w.c.mu.RLock()
	defer w.c.mu.RUnlock()
	if w.epoch != w.c.epoch {
		// What happened before the end is told before the end.
		if i := w.next - w.c.restAt; w.epoch+1 == w.c.epoch && i >= 0 && i < len(w.c.rest) {
			w.next = w.c.restAt + len(w.c.rest)
			w.wake()
			return w.c.rest[i:], nil
		}
		return nil, ErrEnded
	}
	if w.next < w.c.first {
		return nil, ErrExpired
	}
	events := w.c.ring[w.next-w.c.first:]
	w.next += len(events)
	if n := len(events); n > 0 {
		rev = max(rev, events[n-1].Revision)
	}
	w.progress = max(w.progress, rev)
	return events[:len(events):len(events)], nil
}

// Next waits for events.
func (w *Watcher) Next(ctx context.Context) ([]*Event, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.notify:
		}
		if events, err := w.Poll(); err != nil || len(events) > 0 {
			return events, err
		}
	}
}

// Progress is a revision up to which Poll has returned everything.
func (w *Watcher) Progress() int64 { return w.progress }

// End has the watcher find that its kind has changed.
func (w *Watcher) End() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.epoch = -1
	w.wake()
}

// Stop ends the watch.
func (w *Watcher) Stop() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	delete(w.c.watchers, w)
}
