// Package store keeps revisioned keys: an ordered map from key to bytes in which
// every write makes a new revision, reads can look at past revisions until they
// are compacted, and watches see every change from a revision on, in order.
//
// It knows bytes and revisions, never kinds. There are two implementations: etcd
// (embedded or external) and, for tests, memory. Both pass storetest.
package store

import (
	"context"
	"errors"
)

// Errors of a Store.
var (
	// ErrCompacted: the revision asked for is no longer kept.
	ErrCompacted = errors.New("the requested revision has been compacted")
	// ErrFull: the embedded store holds as much as it may. Deletions go on.
	ErrFull = errors.New("the store is full: delete objects that nobody needs; their space is free after the next compaction, within ten minutes")
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("the store is closed")
)

// KV is one key as of a revision.
type KV struct {
	Key   string
	Value []byte
	// Revision in which Value was written.
	Revision int64
}

// Event is one change. A deletion has Deleted set, no Value, and the revision of
// the deletion.
type Event struct {
	KV
	Deleted bool
	// Created tells the first write of a key from a later one.
	Created bool
}

// RangeOptions selects what Range reads.
type RangeOptions struct {
	Revision int64  // read as of this revision; 0: now, linearizable
	Limit    int64  // at most so many keys; 0: all
	From     string // first key to read, at or after the prefix; empty: the prefix
}

// RangeResult is a page of keys in order.
type RangeResult struct {
	KVs []KV
	// Revision is the one the page shows: the store's current one, or the one asked for.
	Revision int64
	// More tells that further keys follow.
	More bool
	// Remaining counts them.
	Remaining int64
}

// Write is a conditional change of one key, or of several at once.
type Write struct {
	Key string
	// If is the revision that the key must have: 0 means that it must not exist.
	If int64
	// Value is what to put; ignored for Delete.
	Value  []byte
	Delete bool
	// Also are changes of other keys that are made with this one, in one revision,
	// in this order: all or, if the condition of one does not hold, none. Their own
	// Also is ignored.
	Also []Write
}

// WriteResult tells what came of a Write.
type WriteResult struct {
	// Done is whether the condition held and the write was made durable.
	Done bool
	// Revision of the write if Done.
	Revision int64
	// Current is the present state of Write.Key if not Done; nil if it does not exist.
	Current *KV
}

// Watcher delivers changes.
type Watcher interface {
	// Next waits for the next batch of changes: whole revisions in ascending order. An
	// error is how the watch ended: ErrCompacted, ErrClosed, that of its context or of
	// the transport. One goroutine at a time may call it.
	Next() ([]Event, error)
}

// Store is the contract. All methods may be called concurrently. A returned
// WriteResult with Done set means that the write survives power loss.
type Store interface {
	// Get reads one key, linearizable; nil if it does not exist.
	Get(ctx context.Context, key string) (*KV, error)
	// Range reads the keys that begin with prefix.
	Range(ctx context.Context, prefix string, opts RangeOptions) (*RangeResult, error)
	// Write changes one key if its condition holds.
	Write(ctx context.Context, w Write) (*WriteResult, error)
	// Watch delivers every change of keys that begin with prefix, from revision
	// on (inclusive), until ctx ends.
	Watch(ctx context.Context, prefix string, revision int64) Watcher
	// Revision is the current revision, linearizable.
	Revision(ctx context.Context) (int64, error)
	// Compact forgets the history before revision; current values stay.
	Compact(ctx context.Context, revision int64) error
	// Close releases what the store holds; with an embedded etcd it stops it.
	Close() error
}
