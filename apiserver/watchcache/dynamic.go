package watchcache

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/store"
)

// mode is how a cache treats the events of its kind.
type mode int

const (
	following mode = iota // they are applied
	changing              // they are applied, and kept for the state that is being read
	filling               // they are kept for the state that is being read
	detached              // they are dropped: the kind is not served
)

// postpone keeps or drops an event that is not to be applied now, and tells so.
func (c *Cache) postpone(e *store.Event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mode == changing || c.mode == filling {
		c.late = append(c.late, *e)
	}
	return c.mode == filling || c.mode == detached
}

// Attach makes the cache of a kind that is declared while the hub runs, or reads
// the objects of one that was declared differently anew: then its watchers end.
// Until then it is as current as before. publish is called in the moment of the
// change: whoever finds a watch ended finds what publish did.
func (h *Hub) Attach(ctx context.Context, k *kind.Kind, publish func(*Cache)) error {
	h.dynamic.Lock()
	defer h.dynamic.Unlock()
	c := h.Cache(k)
	var since int64 // 0: as it is now
	if c == nil {
		c = newCache(h, k)
		c.mode = detached
		if h.past != nil {
			since = h.since
		}
	}
	before, reading := c.mode, filling
	if before == following {
		reading = changing
	}
	c.setMode(reading)
	h.publish(k.Storage, c)
	next, err := h.read(ctx, k, since)
	if err != nil {
		c.setMode(before)
		return err
	}
	if since != 0 { // watches from before the restart find the events that they have not seen
		h.bring(next, h.past)
	}
	for !c.become(next, publish) {
		h.bring(next, c.takeLate())
	}
	return nil
}

// become takes over the state, the events and the kind of next, unless events have
// been kept that next does not have.
func (c *Cache) become(next *Cache, publish func(*Cache)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.late) > 0 {
		return false
	}
	c.kind.Store(next.Kind())
	c.replace(next)
	c.mode = following
	if publish != nil {
		publish(c)
	}
	c.end()
	return true
}

// bring applies those of the events that are of the kind of a cache which nobody
// has seen yet.
func (h *Hub) bring(c *Cache, events []store.Event) {
	prefix := Key(c.Kind(), "")
	for i := range events {
		if key, ok := strings.CutPrefix(events[i].Key, prefix); ok {
			h.put(c, &events[i], key, nil, h.now())
		}
	}
	if n := len(events); n > 0 {
		c.filled = max(c.filled, events[n-1].Revision)
	}
}

// Detach empties the cache of a kind that is no longer served and ends its
// watchers. The Cache stays: it is used again if the kind comes back.
func (h *Hub) Detach(k *kind.Kind) {
	h.dynamic.Lock()
	defer h.dynamic.Unlock()
	c := h.Cache(k)
	if c == nil {
		return
	}
	at := h.Revision()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mode, c.late = detached, nil
	c.replace(&Cache{tree: newTree(), floor: at, filled: at})
	c.end()
}

func (c *Cache) setMode(m mode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mode, c.late = m, nil
}

func (c *Cache) takeLate() []store.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	late := c.late
	c.late = nil
	return late
}

func (h *Hub) publish(storage string, c *Cache) {
	next := maps.Clone(h.byStorage())
	next[storage] = c
	h.caches.Store(&next)
}

// replace puts the objects and events of next in the place of all; mu is held.
func (c *Cache) replace(next *Cache) {
	if d := c.hub.detector; d != nil {
		c.tree.Ascend(func(it *Item) bool { d.goes(it); return true })
	}
	c.tree, c.snapshot = next.tree, nil
	c.rest, c.restAt = c.ring, c.first // for watchers that have not seen all of it
	c.first += len(c.ring)
	c.ring = next.ring
	c.floor, c.filled = next.floor, next.filled
	c.changes.Add(1)
}

// end ends all watches; mu is held.
func (c *Cache) end() {
	c.epoch++
	for w := range c.watchers {
		w.wake()
	}
}

// read returns a cache with the stored objects of a kind as of a revision (0: now).
func (h *Hub) read(ctx context.Context, k *kind.Kind, at int64) (*Cache, error) {
	const page = 1000
	c := newCache(h, k)
	prefix := Key(k, "")
	opts := store.RangeOptions{Limit: page, Revision: at}
	for {
		r, err := h.store.Range(ctx, prefix, opts)
		if err != nil {
			return nil, fmt.Errorf("read the stored objects of %s: %w", k.GVK(), err)
		}
		for _, kv := range r.KVs {
			obj, err := h.decode(k, kv.Key, kv.Value)
			if err != nil {
				h.log.Error("stored object cannot be read: delete or restore it", "key", kv.Key, "error", err)
				continue
			}
			item := NewItem(strings.TrimPrefix(kv.Key, prefix), obj, kv.Revision)
			if h.detector != nil {
				h.detector.came(item)
			}
			c.tree.ReplaceOrInsert(item)
		}
		if !r.More {
			c.floor, c.filled = r.Revision, r.Revision
			return c, nil
		}
		opts.Revision, opts.From = r.Revision, r.KVs[len(r.KVs)-1].Key+"\x00"
	}
}
