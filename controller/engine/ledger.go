package engine

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
)

// ledgerMemory is how long a write is believed that no cache shows; after it the
// object must have come and gone unseen.
const ledgerMemory = 30 * time.Second

// Ledger remembers objects that a controller created until its cache has shown
// them, so that a lagging cache does not make it create them again.
type Ledger struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	open  map[Key]map[types.UID]entry
	owner map[types.UID]Key
}

type entry struct {
	obj client.Object
	at  time.Time
}

func newLedger(c clock.PassiveClock) *Ledger {
	return &Ledger{clock: c, open: map[Key]map[types.UID]entry{}, owner: map[types.UID]Key{}}
}

// Created notes an object made for owner, unless the cache shows it already.
func (l *Ledger) Created(owner Key, cache client.Cache, obj client.Object) {
	l.note(owner, obj)
	// Only now: what the cache shows before the note, nobody would strike out.
	if _, ok := cache.Get(obj.GetNamespace(), obj.GetName()); ok {
		l.mu.Lock()
		l.forget(obj.GetUID())
		l.mu.Unlock()
	}
}

func (l *Ledger) note(owner Key, obj client.Object) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.open[owner]
	if m == nil {
		m = map[types.UID]entry{}
		l.open[owner] = m
	}
	m[obj.GetUID()] = entry{obj, l.clock.Now()}
	l.owner[obj.GetUID()] = owner
}

// Pending returns the objects made for owner that no cache has shown yet, and
// when to look again if there are any. Ask before listing the cache, and take of
// the answer what is Unseen in the list: an object that the cache comes to show in
// between is then counted once.
func (l *Ledger) Pending(owner Key) (objs []client.Object, again time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for uid, e := range l.open[owner] {
		if l.clock.Since(e.at) > ledgerMemory {
			l.forget(uid)
			continue
		}
		objs, again = append(objs, e.obj), ledgerMemory
	}
	return objs, again
}

// Unseen returns the pending objects that are not among listed.
func Unseen[T client.Object](pending []client.Object, listed []T) []T {
	if len(pending) == 0 {
		return nil
	}
	shown := make(map[types.UID]bool, len(listed))
	for _, o := range listed {
		shown[o.GetUID()] = true
	}
	var out []T
	for _, p := range pending {
		if o, ok := p.(T); ok && !shown[o.GetUID()] {
			out = append(out, o)
		}
	}
	return out
}

func (l *Ledger) observe(ev client.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.owner) > 0 {
		l.forget(ev.Object.GetUID())
	}
}

func (l *Ledger) forget(uid types.UID) {
	owner, ok := l.owner[uid]
	if !ok {
		return
	}
	delete(l.owner, uid)
	delete(l.open[owner], uid)
	if len(l.open[owner]) == 0 {
		delete(l.open, owner)
	}
}
