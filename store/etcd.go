package store

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3compactor"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Etcd is the Store on etcd.
type Etcd struct {
	c      *clientv3.Client
	txn    func(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error)
	near   *near // nil: the etcd runs elsewhere
	closed func() error
}

var _ Store = (*Etcd)(nil)

// OpenEmbedded starts an etcd inside this process, of one member and without
// network listeners, that keeps its data in dir. It returns when the store
// serves. Only one process may use dir: a second one gets an error at once.
func OpenEmbedded(ctx context.Context, dir string) (*Etcd, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store directory: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	e, err := startEmbedded(ctx, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store in %s: %w", dir, err), unlock())
	}
	c := v3client.New(e)
	near := &near{e: e, kv: e.Watchable(), limit: limit, closing: make(chan struct{})}
	return &Etcd{c: c, txn: near.txn, near: near, closed: func() error {
		near.close()
		err := c.Close()
		if errors.Is(err, context.Canceled) { // how the client says that its watches ended
			err = nil
		}
		e.Stop()
		return errors.Join(err, unlock())
	}}, nil
}

// startEmbedded runs etcd tuned for one small machine: long ticks and few batches,
// so that it sleeps when idle. It does without etcd's package embed, which brings
// gateways, tracing and listeners that nobody here uses.
func startEmbedded(ctx context.Context, dir string) (e *etcdserver.EtcdServer, err error) {
	var log failures
	lg := log.logger()
	urls := types.URLs{{Scheme: "http", Host: "127.0.0.1:0"}} // nobody listens there
	cfg := config.ServerConfig{
		Name: "knarr", DataDir: filepath.Join(dir, "etcd"),
		ClientURLs: urls, PeerURLs: urls, InitialPeerURLsMap: types.URLsMap{"knarr": urls}, InitialClusterToken: "etcd-cluster", NewCluster: true,
		TickMs: 1000, ElectionTicks: 5, InitialElectionTickAdvance: true, PreVote: true,
		SnapshotCount: 10000, SnapshotCatchUpEntries: 500, MaxSnapFiles: 2, MaxWALFiles: 3,
		BackendBatchInterval: time.Second, BackendFreelistType: bolt.FreelistMapType, QuotaBackendBytes: -1, // that is near's: etcd's would never allow writes again
		AutoCompactionMode: v3compactor.ModePeriodic, AutoCompactionRetention: 5 * time.Minute, // as Kubernetes compacts
		MaxTxnOps: 128, MaxRequestBytes: 4 << 20, WarningApplyDuration: time.Hour, WarningUnaryRequestDuration: time.Hour,
		V2Deprecation: config.V2DeprDefault, ServerFeatureGate: features.NewDefaultServerFeatureGate("knarr", lg), Logger: lg,
	}
	defer func() { // etcd panics where others return an error: on a full disk, say
		if p := recover(); p != nil {
			e, err = nil, errors.New(log.Last())
		}
	}()
	if e, err = etcdserver.NewServer(cfg); err != nil {
		return nil, err
	}
	e.Start()
	if err := elect(ctx, e); err != nil {
		e.Stop()
		return nil, err
	}
	return e, nil
}

// electEvery is how often a starting member is told to stand for election.
const electEvery = 2 * time.Millisecond

// elect has the lone member lead at once instead of after up to nine ticks. The
// message is the one by which a leader that steps down names its successor.
//
// It is sent only when raft has applied all that it knows to be committed: a
// member that stands earlier looks through the entries in between, some of which
// etcd may have compacted already, and panics.
func elect(ctx context.Context, e *etcdserver.EtcdServer) error {
	now := raftpb.Message{Type: raftpb.MsgTimeoutNow, To: uint64(e.MemberID())}
	t := time.NewTicker(electEvery)
	defer t.Stop()
	for {
		select {
		case <-e.ReadyNotify():
			return nil
		case <-e.StopNotify():
			return errors.New("etcd stopped while it started")
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			if e.Leader() != 0 || !settled() {
				continue
			}
			if err := e.Process(ctx, now); err != nil {
				return fmt.Errorf("stand for election: %w", err)
			}
		}
	}
}

// settled tells whether raft, as etcd publishes its status, has applied all that
// is committed. Without that status the member waits for its ticks.
func settled() bool {
	f, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return false
	}
	st, ok := f.Value().(raft.Status)
	return ok && st.Commit > 0 && st.Applied == st.Commit
}

func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another knarr: stop it or choose another --data-dir", filepath.Dir(path))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}

// OpenEtcd connects to an etcd that runs elsewhere.
func OpenEtcd(ctx context.Context, cfg clientv3.Config) (*Etcd, error) {
	if cfg.Logger == nil {
		cfg.Logger = new(failures).logger()
	}
	cfg.Context = ctx
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("etcd %v: %w", cfg.Endpoints, err)
	}
	kv := clientv3.RetryKVClient(c)
	txn := func(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) { return kv.Txn(ctx, r) }
	return &Etcd{c: c, txn: txn, closed: c.Close}, nil
}

// Close implements Store.
func (s *Etcd) Close() error { return s.closed() }

// Get implements Store.
func (s *Etcd) Get(ctx context.Context, key string) (*KV, error) {
	r, err := s.c.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("store: get %s: %w", key, err)
	}
	if len(r.Kvs) == 0 {
		return nil, nil
	}
	kv := fromPB(r.Kvs[0])
	return &kv, nil
}

func fromPB(kv *mvccpb.KeyValue) KV {
	return KV{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision}
}

// Range implements Store.
func (s *Etcd) Range(ctx context.Context, prefix string, o RangeOptions) (*RangeResult, error) {
	from := prefix
	if o.From != "" {
		from = o.From
	}
	opts := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(o.Limit)}
	if o.Revision > 0 {
		opts = append(opts, clientv3.WithRev(o.Revision))
	}
	r, err := s.c.Get(ctx, from, opts...)
	if err != nil {
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil, ErrCompacted
		}
		return nil, fmt.Errorf("store: range %s: %w", prefix, err)
	}
	out := &RangeResult{KVs: make([]KV, len(r.Kvs)), Revision: r.Header.Revision, More: r.More, Remaining: r.Count - int64(len(r.Kvs))}
	if o.Revision > 0 {
		out.Revision = o.Revision
	}
	for i, kv := range r.Kvs {
		out.KVs[i] = fromPB(kv)
	}
	return out, nil
}

// Write implements Store.
func (s *Etcd) Write(ctx context.Context, w Write) (*WriteResult, error) {
	if s.near != nil && !w.Delete && s.near.full() {
		return nil, ErrFull
	}
	t := transaction(&w)
	// What the key is now can be read afterwards from the etcd in this process; a
	// transaction without that question is a tenth smaller.
	ask := s.near == nil || len(w.Also) > 0
	if ask {
		t.Failure = []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(w.Key)}}}}
	}
	r, err := s.txn(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("store: write %s: %w", w.Key, err)
	}
	if r.Succeeded {
		return &WriteResult{Done: true, Revision: r.Header.Revision}, nil
	}
	out := &WriteResult{}
	if !ask {
		out.Current, err = s.near.get(ctx, w.Key)
		return out, err
	}
	if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		kv := fromPB(kvs[0])
		out.Current = &kv
	}
	return out, nil
}

// change is one key's part of a transaction, in one piece of memory.
type change struct {
	compare  pb.Compare
	revision pb.Compare_ModRevision
	op       pb.RequestOp
	isPut    pb.RequestOp_RequestPut
	put      pb.PutRequest
	isDelete pb.RequestOp_RequestDeleteRange
	remove   pb.DeleteRangeRequest
}

func (c *change) set(w *Write) {
	key := []byte(w.Key)
	c.revision.ModRevision = w.If
	c.compare = pb.Compare{Key: key, Result: pb.Compare_EQUAL, Target: pb.Compare_MOD, TargetUnion: &c.revision}
	if w.Delete {
		c.remove.Key = key
		c.isDelete.RequestDeleteRange = &c.remove
		c.op.Request = &c.isDelete
		return
	}
	c.put.Key, c.put.Value = key, w.Value
	c.isPut.RequestPut = &c.put
	c.op.Request = &c.isPut
}

// transaction is what a write asks of etcd.
func transaction(w *Write) *pb.TxnRequest {
	n := 1 + len(w.Also)
	changes := make([]change, n)
	t := &pb.TxnRequest{Compare: make([]*pb.Compare, n), Success: make([]*pb.RequestOp, n)}
	for i := range changes {
		c := &changes[i]
		if i == 0 {
			c.set(w)
		} else {
			c.set(&w.Also[i-1])
		}
		t.Compare[i], t.Success[i] = &c.compare, &c.op
	}
	return t
}

// Revision implements Store.
func (s *Etcd) Revision(ctx context.Context) (int64, error) {
	r, err := s.c.Get(ctx, "\x00", clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("store: current revision: %w", err)
	}
	return r.Header.Revision, nil
}

// Compact implements Store.
func (s *Etcd) Compact(ctx context.Context, revision int64) error {
	if _, err := s.c.Compact(ctx, revision); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("store: compact to %d: %w", revision, err)
	}
	return nil
}

// Watch implements Store.
func (s *Etcd) Watch(ctx context.Context, prefix string, revision int64) Watcher {
	if s.near != nil {
		return s.near.watch(ctx, prefix, revision)
	}
	ch := s.c.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	return &farWatcher{ctx: ctx, ch: ch}
}

// farWatcher is a watch of an etcd that runs elsewhere.
type farWatcher struct {
	ctx context.Context
	ch  clientv3.WatchChan
}

// ended is why a watch gives no more events: its context, or else the store, ended.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return ErrClosed
}

// Next implements Watcher.
func (w *farWatcher) Next() ([]Event, error) {
	for {
		r, ok := <-w.ch
		switch {
		case !ok:
			return nil, ended(w.ctx)
		case r.CompactRevision > 0:
			return nil, ErrCompacted
		case r.Err() != nil:
			return nil, r.Err()
		}
		events := make([]Event, len(r.Events))
		for i, e := range r.Events {
			events[i] = Event{KV: fromPB(e.Kv), Deleted: e.Type == mvccpb.DELETE, Created: e.IsCreate()}
		}
		if len(events) > 0 {
			return events, nil
		}
	}
}
