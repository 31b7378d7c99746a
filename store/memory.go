package store

import (
	"context"
	"slices"
	"sort"
	"strings"
	"sync"
)

// Memory is a Store without durability, for tests. It keeps its whole history
// until Compact.
type Memory struct {
	mu        sync.Mutex
	changed   chan struct{} // closed and replaced by every write
	history   []Event       // ascending revisions; the deletions too
	revision  int64
	compacted int64
	closed    bool
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store at revision 1, as a fresh etcd.
func NewMemory() *Memory {
	return &Memory{changed: make(chan struct{}), revision: 1}
}

// state returns the keys under prefix as of a revision, in order.
func (m *Memory) state(prefix string, revision int64) []KV {
	at := map[string]Event{}
	for _, e := range m.history {
		if e.Revision <= revision && strings.HasPrefix(e.Key, prefix) {
			at[e.Key] = e
		}
	}
	out := make([]KV, 0, len(at))
	for _, e := range at {
		if !e.Deleted {
			out = append(out, e.KV)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out
}

func (m *Memory) current(key string) *KV {
	for _, e := range slices.Backward(m.history) {
		if e.Key == key {
			if e.Deleted {
				return nil
			}
			return &e.KV
		}
	}
	return nil
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, key string) (*KV, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	return m.current(key), ctx.Err()
}

// Range implements Store.
func (m *Memory) Range(ctx context.Context, prefix string, o RangeOptions) (*RangeResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	rev := m.revision
	if o.Revision > 0 {
		if o.Revision < m.compacted {
			return nil, ErrCompacted
		}
		rev = o.Revision
	}
	kvs := m.state(prefix, rev)
	if o.From != "" {
		i := sort.Search(len(kvs), func(i int) bool { return kvs[i].Key >= o.From })
		kvs = kvs[i:]
	}
	out := &RangeResult{KVs: kvs, Revision: rev}
	if o.Limit > 0 && int64(len(kvs)) > o.Limit {
		out.KVs, out.More, out.Remaining = kvs[:o.Limit], true, int64(len(kvs))-o.Limit
	}
	return out, ctx.Err()
}

// Write implements Store.
func (m *Memory) Write(ctx context.Context, w Write) (*WriteResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	writes := append([]Write{w}, w.Also...)
	present := make([]*KV, len(writes))
	for i := range writes {
		var have int64
		if present[i] = m.current(writes[i].Key); present[i] != nil {
			have = present[i].Revision
		}
		if have != writes[i].If {
			return &WriteResult{Current: m.current(w.Key)}, nil
		}
	}
	var events []Event
	for i := range writes {
		w := &writes[i]
		if w.Delete && present[i] == nil {
			continue
		}
		e := Event{KV: KV{Key: w.Key, Revision: m.revision + 1}, Deleted: w.Delete, Created: present[i] == nil && !w.Delete}
		if !w.Delete {
			e.Value = slices.Clone(w.Value)
		}
		events = append(events, e)
	}
	if len(events) > 0 {
		m.revision++
		m.history = append(m.history, events...)
		close(m.changed)
		m.changed = make(chan struct{})
	}
	return &WriteResult{Done: true, Revision: m.revision}, nil
}

// Revision implements Store.
func (m *Memory) Revision(ctx context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision, ctx.Err()
}

// Compact implements Store.
func (m *Memory) Compact(ctx context.Context, revision int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if revision <= m.compacted {
		return nil
	}
	m.compacted = min(revision, m.revision)
	last := map[string]int64{}
	for _, e := range m.history {
		if e.Revision <= m.compacted {
			last[e.Key] = e.Revision
		}
	}
	m.history = slices.DeleteFunc(m.history, func(e Event) bool {
		return e.Revision <= m.compacted && (e.Revision != last[e.Key] || e.Deleted)
	})
	return ctx.Err()
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		close(m.changed)
	}
	return nil
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, prefix string, revision int64) Watcher {
	w := &memoryWatcher{ch: make(chan []Event)}
	go func() {
		defer close(w.ch)
		w.err = m.feed(ctx, w.ch, prefix, revision)
	}()
	return w
}

func (m *Memory) feed(ctx context.Context, ch chan<- []Event, prefix string, next int64) error {
	for {
		m.mu.Lock()
		changed, closed := m.changed, m.closed
		if next == 0 {
			next = m.revision + 1
		}
		if next <= m.compacted {
			m.mu.Unlock()
			return ErrCompacted
		}
		var batch []Event
		for _, e := range m.history {
			if e.Revision >= next && strings.HasPrefix(e.Key, prefix) {
				batch = append(batch, e)
			}
		}
		next = m.revision + 1
		m.mu.Unlock()
		if len(batch) > 0 {
			select {
			case ch <- batch:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if closed {
			return ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type memoryWatcher struct {
	ch  chan []Event
	err error // written before ch is closed
}

// Next implements Watcher.
func (w *memoryWatcher) Next() ([]Event, error) {
	if batch, ok := <-w.ch; ok {
		return batch, nil
	}
	return nil, w.err
}
