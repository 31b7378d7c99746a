package match

import (
	"sync"
	"sync/atomic"

	"knarr.dev/knarr/apiserver/registry"
)

// Entry is a webhook or a policy with its constraints.
type Entry interface{ Match() *Constraints }

// Hit is an entry that a sort of requests may concern.
type Hit[E Entry] struct {
	Entry E
	// Resource is the version in which the entry wants the objects.
	Resource *registry.Resource
}

// Hits are all entries that a sort of requests may concern, in order.
type Hits[E Entry] struct {
	List []Hit[E]
	// Versions of the resource, the requested one first.
	Versions []*registry.Resource
}

// Index finds the entries for a sort of requests. It follows the configurations:
// a request that begins after a configuration was stored sees it.
type Index[E Entry] struct {
	// Stamp changes whenever a configuration or the set of resources changes. It
	// only ever rises.
	Stamp func() int64
	// Load returns the present entries, in order. previous are those of the last
	// time, so that unchanged ones can be kept.
	Load func(previous []E) []E
	// Versions lists a resource's versions, itself first.
	Versions func(*registry.Resource) []*registry.Resource

	mu    sync.Mutex // held while the table is replaced
	table atomic.Pointer[table[E]]
}

// maxQueries bounds what is remembered of one state of the configurations;
// resources that are declared and removed all the time would fill it.
const maxQueries = 8192

type table[E Entry] struct {
	stamp   int64
	entries []E
	known   sync.Map // Query -> *Hits[E]
	size    atomic.Int32
}

// Find returns what a request may concern; nil is nothing.
func (x *Index[E]) Find(a *registry.Attributes) *Hits[E] {
	t := x.current()
	if len(t.entries) == 0 || Exempt(a.Requested) {
		return nil
	}
	q := Query{Resource: a.Requested, Subresource: a.Subresource, Operation: a.Operation}
	if h, ok := t.known.Load(q); ok {
		return h.(*Hits[E])
	}
	var found *Hits[E]
	versions := x.Versions(q.Resource)
	for _, e := range t.entries {
		if v := e.Match().Version(q, versions, nil); v != nil {
			if found == nil {
				found = &Hits[E]{Versions: versions}
			}
			found.List = append(found.List, Hit[E]{Entry: e, Resource: v})
		}
	}
	if t.size.Add(1) <= maxQueries {
		t.known.Store(q, found)
	}
	return found
}

func (x *Index[E]) current() *table[E] {
	// The stamp is read first: what changes while the entries are loaded raises it
	// again, and the next request loads anew.
	stamp := x.Stamp()
	if t := x.table.Load(); t != nil && t.stamp == stamp {
		return t
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	old := x.table.Load()
	if old != nil && old.stamp >= stamp {
		return old
	}
	var previous []E
	if old != nil {
		previous = old.entries
	}
	t := &table[E]{stamp: stamp, entries: x.Load(previous)}
	x.table.Store(t)
	return t
}
