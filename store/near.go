package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// near is the etcd in this process. Its watches are read at their source: through
// the client, which is made for a network, an event passes six goroutines more, and
// every write waits for its own event.
type near struct {
	e       *etcdserver.EtcdServer
	kv      mvcc.WatchableKV
	limit   int64 // bytes of objects and history, above which nothing more is put
	once    sync.Once
	closing chan struct{}
}

func (n *near) close() { n.once.Do(func() { close(n.closing) }) }

// limit is the usual one.
const limit = 8 << 30

// full tells that no more is put until something was deleted and compacted. As the
// backend counts at its commits, a second's writes may come on top of the limit.
func (n *near) full() bool { return n.e.Backend().SizeInUse() > n.limit }

// txn asks etcd itself: its RPC layer checks what transaction never gets wrong. One
// that has begun is waited for, for as long as etcd's own limit of fifteen seconds, also
// if ctx ends: it cannot be taken back.
func (n *near) txn(ctx context.Context, t *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := n.e.Txn(context.Background(), t) // not ctx, which would be asked a dozen times for what it does not have
	if errors.Is(err, etcderrors.ErrStopped) {
		return nil, ErrClosed
	}
	return r, err
}

// get reads what this process knows of a key, which is all that it has been answered.
func (n *near) get(ctx context.Context, key string) (*KV, error) {
	r, err := n.kv.Range(ctx, []byte(key), nil, mvcc.RangeOptions{})
	if err != nil {
		return nil, fmt.Errorf("store: get %s: %w", key, err)
	}
	if len(r.KVs) == 0 {
		return nil, nil
	}
	kv := fromPB(&r.KVs[0])
	return &kv, nil
}

// watch begins a watch, of which etcd knows when it returns: one that begins in the
// past waits for a clock of 100 ms, and every write in between makes the present the
// past.
func (n *near) watch(ctx context.Context, prefix string, revision int64) *nearWatcher {
	w := &nearWatcher{near: n, ctx: ctx, stream: n.kv.NewWatchStream()}
	if _, err := w.stream.Watch(clientv3.AutoWatchID, []byte(prefix), []byte(clientv3.GetPrefixRangeEnd(prefix)), revision); err != nil {
		w.err = fmt.Errorf("store: watch %s: %w", prefix, err)
	}
	w.forget = context.AfterFunc(ctx, w.stream.Close)
	return w
}

type nearWatcher struct {
	near   *near
	ctx    context.Context
	stream mvcc.WatchStream
	forget func() bool // what would close the stream when ctx ends
	err    error       // how the watch ended
}

// Next implements Watcher.
func (w *nearWatcher) Next() ([]Event, error) {
	if w.err == nil {
		events, err := w.receive()
		if err == nil {
			return events, nil
		}
		w.err = err
	}
	if w.forget() {
		w.stream.Close()
	}
	return nil, w.err
}

func (w *nearWatcher) receive() ([]Event, error) {
	for {
		select {
		case <-w.ctx.Done():
			return nil, w.ctx.Err()
		case <-w.near.closing:
			return nil, ErrClosed
		case r, ok := <-w.stream.Chan():
			switch {
			case !ok:
				return nil, ended(w.ctx)
			case r.CompactRevision > 0:
				return nil, ErrCompacted
			}
			events := make([]Event, len(r.Events))
			for i := range r.Events {
				e := &r.Events[i]
				events[i] = Event{KV: fromPB(e.Kv), Deleted: e.Type == mvccpb.DELETE, Created: e.Kv.CreateRevision == e.Kv.ModRevision}
			}
			if len(events) > 0 {
				return events, nil
			}
		}
	}
}
