package watchcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/kit/lean"
	"knarr.dev/knarr/store"
)

// Prefix is what every key in the store begins with.
const Prefix = "/registry/"

// Decoder turns a stored value into an object.
type Decoder func(k *kind.Kind, key string, value []byte) (kind.Object, error)

// Hub feeds the caches of all kinds from one watch of the store, so that
// revisions are observed in one order.
type Hub struct {
	store  store.Store
	decode Decoder
	now    func() time.Time
	log    *slog.Logger

	caches   atomic.Pointer[map[string]*Cache] // by storage; replaced, never changed
	dynamic  sync.Mutex                        // held while caches are added or removed
	detector *detector                         // nil: off
	grown    chan struct{}                     // has a value if a cache holds more than minRing events

	// Of the time before Run: the state was read as it was at since, and past are the
	// later changes of keys that had no cache; kinds attached now have their history.
	since int64
	past  []store.Event // guarded by dynamic; nil from Run on

	revision atomic.Int64
	mu       sync.Mutex
	waiters  []waiter
	pending  map[string]*Pending
}

type waiter struct {
	revision int64
	done     chan struct{}
}

// Open loads every kind's objects from the store.
//
// mutated, if set, is told about shared objects that somebody has changed, and
// what of them; it costs an encoding for each write.
func Open(ctx context.Context, s store.Store, kinds []*kind.Kind, decode Decoder, mutated func(key, change string), now func() time.Time, log *slog.Logger) (*Hub, error) {
	h := &Hub{store: s, decode: decode, now: now, log: log, pending: map[string]*Pending{}, grown: make(chan struct{}, 1)}
	if mutated != nil {
		h.detector = newDetector(mutated)
	}
	caches := map[string]*Cache{}
	for _, k := range kinds {
		if k.Hub.Empty() {
			caches[k.Storage] = newCache(h, k)
		}
	}
	h.caches.Store(&caches)
	end, err := h.mark(ctx)
	if err != nil {
		return nil, fmt.Errorf("mark the start in the store: %w", err)
	}
	// As it was a little ago, and what has happened since: watches that resume after
	// a restart find the events that they have not seen.
	from, err := h.oldest(ctx, end)
	if err != nil {
		return nil, fmt.Errorf("look for the history that the store has kept: %w", err)
	}
	if err := h.load(ctx, from); err != nil {
		return nil, err
	}
	h.since, h.past = from, []store.Event{}
	return h, h.replay(ctx, end)
}

// history is how many revisions of the past are read at the start.
const history = 2000

// startKey is written at each start: its event tells that all earlier ones came.
const startKey = Prefix + "knarr/start"

func (h *Hub) mark(ctx context.Context) (revision int64, err error) {
	for {
		old, err := h.store.Get(ctx, startKey)
		if err != nil {
			return 0, err
		}
		w := store.Write{Key: startKey, Value: []byte("1")}
		if old != nil {
			w.If = old.Revision
		}
		r, err := h.store.Write(ctx, w)
		if err != nil {
			return 0, err
		}
		if r.Done { // else another server starts at the same time
			return r.Revision, nil
		}
	}
}

// oldest is the first revision from end-history on that has not been compacted.
func (h *Hub) oldest(ctx context.Context, end int64) (int64, error) {
	from := max(1, end-history)
	var failed error
	n := sort.Search(int(end-from), func(i int) bool {
		_, err := h.store.Range(ctx, startKey, store.RangeOptions{Revision: from + int64(i), Limit: 1})
		if err != nil && !errors.Is(err, store.ErrCompacted) {
			failed = err
		}
		return err == nil
	})
	return from + int64(n), failed
}

// replay applies the events up to revision, that of the mark.
func (h *Hub) replay(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if h.Revision() >= revision {
		return nil
	}
	if h.Revision()+1 == revision { // a new store; events of the past come up to 100 ms later
		h.advance(revision)
		return nil
	}
	w := h.store.Watch(ctx, Prefix, h.Revision()+1)
	for h.Revision() < revision {
		batch, err := w.Next()
		if err != nil {
			return fmt.Errorf("read the latest changes: %w", err)
		}
		for _, e := range batch {
			if c, _ := h.split(e.Key); c == nil {
				h.past = append(h.past, e)
			}
		}
		h.batch(batch)
	}
	return nil
}

// CheckShared looks at every cached object for changes, if Open was told whom
// to tell.
func (h *Hub) CheckShared() {
	if h.detector != nil {
		h.detector.all()
	}
}

// Cache returns the cache of a stored kind, or nil.
func (h *Hub) Cache(k *kind.Kind) *Cache { return h.byStorage()[k.Storage] }

func (h *Hub) byStorage() map[string]*Cache { return *h.caches.Load() }

// Key returns an object's key in the store.
func Key(k *kind.Kind, objectKey string) string { return Prefix + k.Storage + "/" + objectKey }

// split finds the cache and the object key of a store key.
func (h *Hub) split(key string) (*Cache, string) {
	rest := strings.TrimPrefix(key, Prefix)
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return nil, ""
	}
	caches := h.byStorage()
	if c := caches[rest[:i]]; c != nil {
		return c, rest[i+1:]
	}
	if j := strings.IndexByte(rest[i+1:], '/'); j >= 0 {
		if c := caches[rest[:i+1+j]]; c != nil {
			return c, rest[i+j+2:]
		}
	}
	return nil, ""
}

// load makes the caches equal to the store as it was at a revision (0: as it is):
// at first an empty tree is filled; after a broken watch the differences become
// events.
func (h *Hub) load(ctx context.Context, revision int64) error {
	h.dynamic.Lock()
	defer h.dynamic.Unlock()
	const page = 1000
	seen := map[*Cache]map[string]bool{}
	opts := store.RangeOptions{Limit: page, Revision: revision}
	first := h.revision.Load() == 0
	for {
		r, err := h.store.Range(ctx, Prefix, opts)
		if err != nil {
			return fmt.Errorf("load the state: %w", err)
		}
		for _, kv := range r.KVs {
			c, key := h.split(kv.Key)
			if c == nil || c.mode == detached {
				continue
			}
			if seen[c] == nil {
				seen[c] = map[string]bool{}
			}
			seen[c][key] = true
			if old := c.Get(key); old != nil && old.Revision == kv.Revision {
				continue
			}
			obj, err := h.decode(c.Kind(), kv.Key, kv.Value)
			if err != nil {
				h.log.Error("stored object cannot be read: delete or restore it", "key", kv.Key, "error", err)
				continue
			}
			item := NewItem(key, obj, kv.Revision)
			if first {
				if h.detector != nil {
					h.detector.came(item)
				}
				c.tree.ReplaceOrInsert(item)
			} else {
				c.apply(key, item, kv.Revision, h.now())
			}
		}
		if !r.More {
			for _, c := range h.byStorage() {
				if first {
					c.floor = r.Revision
				} else if c.mode != detached {
					h.prune(c, seen[c], r.Revision)
				}
			}
			h.advance(r.Revision)
			return nil
		}
		opts.Revision, opts.From = r.Revision, r.KVs[len(r.KVs)-1].Key+"\x00"
	}
}

func (h *Hub) prune(c *Cache, present map[string]bool, revision int64) {
	var gone []string
	c.Snapshot().Ascend("", "", func(i *Item) bool {
		if !present[i.Key] {
			gone = append(gone, i.Key)
		}
		return true
	})
	for _, key := range gone {
		c.apply(key, nil, revision, h.now())
	}
}

// Run applies the store's changes until ctx ends.
func (h *Hub) Run(ctx context.Context) error {
	h.dynamic.Lock()
	h.past = nil
	h.dynamic.Unlock()
	var forgetting sync.WaitGroup
	defer forgetting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	forgetting.Go(func() { h.forget(ctx) })
	for ctx.Err() == nil {
		err := h.follow(h.store.Watch(ctx, Prefix, h.Revision()+1))
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			break
		}
		h.log.Warn("watch of the store ended; reading the state again", "error", err)
		if err := h.load(ctx, 0); err != nil && ctx.Err() == nil {
			h.log.Error("state not read; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

// follow applies a watch's events until it ends, and tells why.
func (h *Hub) follow(w store.Watcher) error {
	for {
		batch, err := w.Next()
		if err != nil {
			return err
		}
		h.batch(batch)
	}
}

// forget has the caches forget what has aged, until ctx ends. It sleeps while there is
// nothing to forget.
func (h *Hub) forget(ctx context.Context) {
	dropped := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.grown:
		}
		for pause := trimPause; pause > 0; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			n, next := h.trim()
			dropped += n
			if pause = 0; !next.IsZero() {
				pause = max(next.Sub(h.now()), trimPause)
			}
			if dropped >= muchPast && (pause == 0 || n == 0) {
				// Most of the heap may just have become garbage, and at rest the
				// next collection is minutes away.
				if err := lean.Rest(); err != nil {
					h.log.Warn("memory could not be given back", "error", err)
				}
				dropped = 0
			}
		}
	}
}

// trim has every cache forget what has aged. It tells how many events that were,
// and when the next one ages.
func (h *Hub) trim() (dropped int, next time.Time) {
	select {
	case <-h.grown: // later growth is told anew
	default:
	}
	for _, c := range h.byStorage() {
		n, at := c.trim(h.now())
		dropped += n
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return dropped, next
}

func (h *Hub) batch(events []store.Event) {
	now := h.now()
	for i := range events {
		e := &events[i]
		if c, key := h.split(e.Key); c != nil && !c.postpone(e) {
			h.one(c, e, key, now)
		}
	}
	if n := len(events); n > 0 {
		h.advance(events[n-1].Revision)
	}
}

// one applies an event to its cache.
func (h *Hub) one(c *Cache, e *store.Event, key string, now time.Time) {
	h.put(c, e, key, h.claim(e, key), now)
}

// put applies an event to a cache, as item if somebody has the object decoded.
func (h *Hub) put(c *Cache, e *store.Event, key string, item *Item, now time.Time) {
	if e.Deleted {
		c.apply(key, nil, e.Revision, now)
		return
	}
	if item == nil {
		obj, err := h.decode(c.Kind(), e.Key, e.Value)
		if err != nil {
			h.log.Error("stored object cannot be read", "key", e.Key, "error", err)
			return
		}
		item = NewItem(key, obj, e.Revision)
	}
	c.apply(key, item, e.Revision, now)
}

// Pending is a write under way whose object need not be decoded again.
type Pending struct {
	key   string
	value []byte
	obj   kind.Object
	item  *Item // set when the write's event was applied; guarded by Hub.mu
}

// Expect announces that obj is about to be written as value. The hub owns obj
// from here on if the write succeeds; call Forget when the write has ended.
func (h *Hub) Expect(key string, value []byte, obj kind.Object) *Pending {
	p := &Pending{key: key, value: value, obj: obj}
	h.mu.Lock()
	h.pending[key] = p
	h.mu.Unlock()
	return p
}

// Forget ends what Expect began.
func (h *Hub) Forget(p *Pending) {
	h.mu.Lock()
	if h.pending[p.key] == p {
		delete(h.pending, p.key)
	}
	h.mu.Unlock()
}

// Result returns the item that the caches got for the write of revision, after
// Wait.
func (h *Hub) Result(p *Pending, objectKey string, revision int64) *Item {
	h.mu.Lock()
	item := p.item
	h.mu.Unlock()
	if item != nil && item.Revision == revision {
		return item
	}
	// Another writer's announcement took the place of ours: nobody shares obj.
	return NewItem(objectKey, p.obj, revision)
}

func (h *Hub) claim(e *store.Event, objectKey string) *Item {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pending[e.Key]
	if p == nil || !bytes.Equal(p.value, e.Value) {
		return nil
	}
	delete(h.pending, e.Key)
	p.item = NewItem(objectKey, p.obj, e.Revision)
	return p.item
}

// Revision is the newest revision up to which every cache has every change.
func (h *Hub) Revision() int64 { return h.revision.Load() }

func (h *Hub) advance(revision int64) {
	h.mu.Lock()
	if revision > h.revision.Load() {
		h.revision.Store(revision)
	}
	rest := h.waiters[:0]
	for _, w := range h.waiters {
		if w.revision <= revision {
			close(w.done)
		} else {
			rest = append(rest, w)
		}
	}
	clear(h.waiters[len(rest):])
	h.waiters = rest
	h.mu.Unlock()
}

// Wait blocks until the caches have reached a revision.
func (h *Hub) Wait(ctx context.Context, revision int64) error {
	if h.Revision() >= revision {
		return nil
	}
	h.mu.Lock()
	if h.revision.Load() >= revision {
		h.mu.Unlock()
		return nil
	}
	w := waiter{revision: revision, done: make(chan struct{})}
	h.waiters = append(h.waiters, w)
	h.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for revision %d: %w", revision, ctx.Err())
	}
}
