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

// watch feeds w until ctx ends or the store is closed. It returns when etcd knows of
// the watch: one that begins in the past waits for a clock of 100 ms, and every write
// in between makes the present the past.
func (n *near) watch(ctx context.Context, w *etcdWatcher, prefix string, revision int64) {
	stream := n.kv.NewWatchStream()
	if _, err := stream.Watch(clientv3.AutoWatchID, []byte(prefix), []byte(clientv3.GetPrefixRangeEnd(prefix)), revision); err != nil {
		w.err.Store(fmt.Errorf("store: watch %s: %w", prefix, err))
		stream.Close()
		close(w.ch)
		return
	}
	go n.feed(ctx, w, stream)
}

func (n *near) feed(ctx context.Context, w *etcdWatcher, stream mvcc.WatchStream) {
	defer close(w.ch)
	defer stream.Close()
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
