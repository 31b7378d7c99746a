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
	if _, ok := cache.Get(obj.GetNamespace(), obj.GetName()); ok {
		return
	}
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
// when to look again if there are any.
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
