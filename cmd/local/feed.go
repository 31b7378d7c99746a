package local

import (
	"context"
	"slices"
	"sync"

	"github.com/google/btree"

	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/client"
)

// feeds has a feed for each kind that somebody subscribes to.
type feeds struct {
	mu sync.Mutex
	of map[*watchcache.Cache]*feed
}

// subscribe calls fn for what match selects of a cache, see client.Cache.
func (f *feeds) subscribe(c *watchcache.Cache, match func(client.Object) bool, fn func(client.Event)) (cancel func()) {
	s := &subscription{match: match, fn: fn}
	f.mu.Lock()
	d := f.of[c]
	if d == nil {
		d = newFeed(c)
		if f.of == nil {
			f.of = map[*watchcache.Cache]*feed{}
		}
		f.of[c] = d
	}
	d.users++
	f.mu.Unlock()
	d.join(s)
	var once sync.Once
	return func() {
		once.Do(func() {
			d.leave(s)
			if f.drop(d) {
				d.stop()
				<-d.ended
			}
		})
	}
}

// drop counts one user less of a feed, and tells whether it was the last.
func (f *feeds) drop(d *feed) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.users--; d.users == 0 {
		delete(f.of, d.cache)
	}
	return d.users == 0
}

type subscription struct {
	match func(client.Object) bool
	fn    func(client.Event)
}

// tell says what a change from old to obj (nil: not there) means to the subscriber.
func (s *subscription) tell(old, obj client.Object) {
	if old != nil && !s.match(old) {
		old = nil
	}
	if obj != nil && !s.match(obj) {
		obj = nil
	}
	switch {
	case obj == nil && old == nil:
	case obj == nil:
		s.fn(client.Event{Type: client.Deleted, Object: old, Old: old})
	case old == nil:
		s.fn(client.Event{Type: client.Added, Object: obj})
	default:
		s.fn(client.Event{Type: client.Modified, Object: obj, Old: old})
	}
}

// feed tells the changes of one kind to all of its subscribers, one after the other,
// in one goroutine.
type feed struct {
	cache *watchcache.Cache
	users int // guarded by feeds.mu
	stop  context.CancelFunc
	ended chan struct{}

	arrivals sync.Mutex
	coming   []*subscription // not told anything yet
	came     chan struct{}   // signalled when there are some

	mu   sync.Mutex // held while subscribers are told
	subs []*subscription
	told *btree.BTreeG[*watchcache.Item] // the state that the subscribers know
}

func newFeed(c *watchcache.Cache) *feed {
	ctx, stop := context.WithCancel(context.Background()) // ended by the last cancel
	d := &feed{cache: c, stop: stop, ended: make(chan struct{}), came: make(chan struct{}, 1)}
	// The first state is that of this moment: no change from here on is missed or
	// folded into it.
	snap, w := c.SnapshotAndWatch()
	d.told = treeOf(snap)
	go d.run(ctx, w)
	return d
}

func treeOf(s *watchcache.Snapshot) *btree.BTreeG[*watchcache.Item] {
	t := btree.NewG(32, func(a, b *watchcache.Item) bool { return a.Key < b.Key })
	s.Ascend("", "", func(i *watchcache.Item) bool {
		t.ReplaceOrInsert(i)
		return true
	})
	return t
}

func (d *feed) join(s *subscription) {
	d.arrivals.Lock()
	d.coming = append(d.coming, s)
	d.arrivals.Unlock()
	select {
	case d.came <- struct{}{}:
	default:
	}
}

// welcome tells new subscribers the present state.
func (d *feed) welcome() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrivals.Lock()
	fresh := d.coming
	d.coming = nil
	d.arrivals.Unlock()
	for _, s := range fresh {
		d.told.Ascend(func(i *watchcache.Item) bool {
			s.tell(nil, i.Object)
			return true
		})
	}
	d.subs = append(d.subs, fresh...)
}

// leave returns when s is not called any more.
func (d *feed) leave(s *subscription) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrivals.Lock()
	defer d.arrivals.Unlock()
	is := func(o *subscription) bool { return o == s }
	d.coming = slices.DeleteFunc(d.coming, is)
	d.subs = slices.DeleteFunc(d.subs, is)
}

// run follows the cache until ctx ends. If it falls behind the cache's memory of
// events, the subscribers get the difference between what they know and what is
// there.
func (d *feed) run(ctx context.Context, w *watchcache.Watcher) {
	defer close(d.ended)
	defer func() { w.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.came:
			d.welcome()
		case <-w.Ready():
			events, err := w.Poll()
			d.welcome() // whoever came before what has happened since is told of it as a change
			if err == nil {
				d.apply(events)
				break
			}
			w.Stop() // it has ended, or was too slow: start again from a snapshot
			var snap *watchcache.Snapshot
			snap, w = d.cache.SnapshotAndWatch()
			d.become(treeOf(snap))
		}
	}
}

func (d *feed) apply(events []*watchcache.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range events {
		if e.Type == watchcache.Deleted {
			if old, ok := d.told.Delete(e.Item); ok {
				d.tell(old, nil)
			}
			continue
		}
		old, _ := d.told.ReplaceOrInsert(e.Item)
		d.tell(old, e.Item)
	}
}

// become takes another state over.
func (d *feed) become(next *btree.BTreeG[*watchcache.Item]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.told
	d.told = next
	next.Ascend(func(i *watchcache.Item) bool {
		old, _ := before.Delete(i)
		d.tell(old, i)
		return true
	})
	before.Ascend(func(i *watchcache.Item) bool {
		d.tell(i, nil)
		return true
	})
}

// tell tells everybody of a change; the lock is held.
func (d *feed) tell(old, item *watchcache.Item) {
	var from, to client.Object
	if old != nil {
		from = old.Object
	}
	if item != nil {
		to = item.Object
	}
	if from != nil && to != nil && from.GetResourceVersion() == to.GetResourceVersion() {
		return
	}
	for _, s := range d.subs {
		s.tell(from, to)
	}
}
