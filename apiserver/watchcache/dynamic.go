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
	filling               // they are kept until the tree has been read
	detached              // they are dropped: the kind is not served
)

// postpone keeps or drops an event that is not to be applied now, and tells so.
func (c *Cache) postpone(e *store.Event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.mode {
	case filling:
		c.late = append(c.late, *e)
		return true
	case detached:
		return true
	}
	return e.Revision <= c.filled
}

// Attach makes the cache of a kind that is declared while the hub runs, or reads
// the objects of a cache anew after its kind has changed: watchers of before get
// ErrEnded. Writers of other kinds are not held up.
func (h *Hub) Attach(ctx context.Context, k *kind.Kind) (*Cache, error) {
	h.dynamic.Lock()
	defer h.dynamic.Unlock()
	c := h.Cache(k)
	var since int64 // 0: as it is now
	if c == nil {
		c = newCache(h, k)
		if h.past != nil {
			since = h.since
		}
	}
	before := c.setMode(filling)
	h.publish(k.Storage, c)
	items, at, err := h.read(ctx, k, since)
	if err != nil {
		if before == following {
			h.catchUp(c) // as it was
		} else {
			c.setMode(detached)
		}
		return nil, err
	}
	c.kind.Store(k)
	c.replace(items, at)
	if since != 0 { // watches from before the restart find the events that they have not seen
		prefix := Key(k, "")
		for i := range h.past {
			if key, ok := strings.CutPrefix(h.past[i].Key, prefix); ok {
				h.one(c, &h.past[i], key, h.now())
			}
		}
	}
	h.catchUp(c)
	return c, nil
}

// Detach empties the cache of a kind that is no longer served and ends its
// watchers. The Cache stays: it is used again if the kind comes back.
func (h *Hub) Detach(k *kind.Kind) {
	h.dynamic.Lock()
	defer h.dynamic.Unlock()
	if c := h.Cache(k); c != nil {
		c.setMode(detached)
		c.replace(nil, h.Revision())
	}
}

func (c *Cache) setMode(m mode) (before mode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, c.mode = c.mode, m
	c.late = nil
	return before
}

func (h *Hub) publish(storage string, c *Cache) {
	next := maps.Clone(h.byStorage())
	next[storage] = c
	h.caches.Store(&next)
}

// catchUp applies what was kept; new events arrive meanwhile, until none is left.
func (h *Hub) catchUp(c *Cache) {
	for {
		c.mu.Lock()
		late := c.late
		c.late = nil
		if len(late) == 0 {
			c.mode = following
			c.mu.Unlock()
			return
		}
		filled := c.filled
		c.mu.Unlock()
		for i := range late {
			if late[i].Revision > filled {
				h.one(c, &late[i], strings.TrimPrefix(late[i].Key, Key(c.Kind(), "")), h.now())
			}
		}
	}
}

// replace puts other objects in the place of all.
func (c *Cache) replace(items []*Item, revision int64) {
	tree := newTree()
	for _, it := range items {
		tree.ReplaceOrInsert(it)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.hub.detector; d != nil {
		c.tree.Ascend(func(it *Item) bool { d.goes(it); return true })
		for _, it := range items {
			d.came(it)
		}
	}
	c.tree, c.snapshot = tree, nil
	c.rest, c.restAt = c.ring, c.first // for watchers that have not seen all of it
	c.first += len(c.ring)
	c.ring = nil
	c.floor, c.filled = revision, revision
	c.epoch++
	c.changes.Add(1)
	for w := range c.watchers {
		w.wake()
	}
}

// read returns the stored objects of a kind as of a revision (0: now).
func (h *Hub) read(ctx context.Context, k *kind.Kind, at int64) (items []*Item, revision int64, err error) {
	const page = 1000
	prefix := Key(k, "")
	opts := store.RangeOptions{Limit: page, Revision: at}
	for {
		r, err := h.store.Range(ctx, prefix, opts)
		if err != nil {
			return nil, 0, fmt.Errorf("read the stored objects of %s: %w", k.GVK(), err)
		}
		for _, kv := range r.KVs {
			obj, err := h.decode(k, kv.Key, kv.Value)
			if err != nil {
				h.log.Error("stored object cannot be read: delete or restore it", "key", kv.Key, "error", err)
				continue
			}
			items = append(items, NewItem(strings.TrimPrefix(kv.Key, prefix), obj, kv.Revision))
		}
		if !r.More {
			return items, r.Revision, nil
		}
		opts.Revision, opts.From = r.Revision, r.KVs[len(r.KVs)-1].Key+"\x00"
	}
}
