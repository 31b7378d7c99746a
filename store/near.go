package store

import (
	"context"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// near is the etcd in this process. Its watches are read at their source: through
// the client, which is made for a network, an event passes six goroutines more, and
// every write waits for its own event.
type near struct {
	kv      mvcc.WatchableKV
	once    sync.Once
	closing chan struct{}
}

func (n *near) close() { n.once.Do(func() { close(n.closing) }) }

// run feeds w until ctx ends or the store is closed.
func (n *near) run(ctx context.Context, w *etcdWatcher, prefix string, revision int64) {
	defer close(w.ch)
	stream := n.kv.NewWatchStream()
	defer stream.Close()
	if _, err := stream.Watch(clientv3.AutoWatchID, []byte(prefix), []byte(clientv3.GetPrefixRangeEnd(prefix)), revision); err != nil {
		w.err.Store(fmt.Errorf("store: watch %s: %w", prefix, err))
		return
	}
	for {
		select {
		case <-ctx.Done():
			w.err.Store(ctx.Err())
			return
		case <-n.closing:
			w.err.Store(ErrClosed)
			return
		case r, ok := <-stream.Chan():
			if !ok {
				w.err.Store(ErrClosed)
				return
			}
			if r.CompactRevision > 0 {
				w.err.Store(ErrCompacted)
				return
			}
			events := make([]Event, len(r.Events))
			for i := range r.Events {
				e := &r.Events[i]
				events[i] = Event{KV: fromPB(e.Kv), Deleted: e.Type == mvccpb.DELETE, Created: e.Kv.CreateRevision == e.Kv.ModRevision}
			}
			if !w.deliver(ctx, n.closing, events) {
				return
			}
		}
	}
}
