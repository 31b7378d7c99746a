// Package watchcache holds the current state of every kind in memory, as the
// store's watch reports it, and serves reads and watches from there.
//
// An object is decoded once, when it is written, and encoded once per format,
// when somebody first asks: all readers and watchers share the object and its
// bytes. Trees are copied on write, so a list is a snapshot that costs nothing
// to take and never blocks a writer.
//
//	store.Watch ──batches──> Hub ──per kind──> Cache{tree, ring of events}
//	                          │                    │           │
//	     writers wait for <───┘ progress      Get, Snapshot   Watcher (cursor in the ring)
package watchcache

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
)

// Item is one object in one revision, immutable, with its encodings.
type Item struct {
	Key      string // "namespace/name", or "name" for cluster-scoped kinds
	Object   kind.Object
	Revision int64

	json  atomic.Pointer[[]byte]
	proto atomic.Pointer[sealed]
	other atomic.Pointer[version]
}

// version is an object in another version than it is stored in.
type version struct {
	name string
	item *Item
	next *version
}

// As returns what KeepAs kept for a version, or nil.
func (i *Item) As(name string) *Item {
	for v := i.other.Load(); v != nil; v = v.next {
		if v.name == name {
			return v.item
		}
	}
	return nil
}

// KeepAs keeps the object as it is in another version, for all its readers.
func (i *Item) KeepAs(name string, obj kind.Object) *Item {
	v := &version{name: name, item: NewItem(i.Key, obj, i.Revision)}
	for {
		v.next = i.other.Load()
		if i.other.CompareAndSwap(v.next, v) {
			return v.item
		}
	}
}

// NewItem wraps obj, which must not be changed afterwards, and stamps it with
// the revision.
func NewItem(key string, obj kind.Object, revision int64) *Item {
	obj.SetResourceVersion(strconv.FormatInt(revision, 10))
	return &Item{Key: key, Object: obj, Revision: revision}
}

// JSON returns the object's JSON, without a trailing newline. Shared: do not change.
func (i *Item) JSON() ([]byte, error) {
	if p := i.json.Load(); p != nil {
		return *p, nil
	}
	b, err := EncodeJSON(i.Object)
	if err != nil {
		return nil, err
	}
	i.json.Store(&b)
	return b, nil
}

// EncodeJSON encodes v as the API's JSON: no HTML escaping, no newline.
func EncodeJSON(v any) ([]byte, error) {
	if u, ok := v.(*unstructured.Unstructured); ok {
		v = u.Object // spares a second pass over what its own encoder makes
	}
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(true) // as Kubernetes' own serializer
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// sealed is a message in its envelope.
type sealed struct{ whole, bare []byte }

// Protobuf returns the object's bare protobuf message, or nil if the kind has
// none. Shared: do not change.
func (i *Item) Protobuf() ([]byte, error) {
	s, err := i.seal()
	return s.bare, err
}

// Sealed returns the object's protobuf message in the envelope of its kind, or nil
// if the kind has none. Shared: do not change.
func (i *Item) Sealed() ([]byte, error) {
	s, err := i.seal()
	return s.whole, err
}

func (i *Item) seal() (sealed, error) {
	if s := i.proto.Load(); s != nil {
		return *s, nil
	}
	m, ok := i.Object.(codec.Message)
	if !ok {
		return sealed{}, nil
	}
	whole, bare, err := codec.Seal(m)
	if err != nil {
		return sealed{}, err
	}
	i.proto.Store(&sealed{whole, bare})
	return sealed{whole, bare}, nil
}
