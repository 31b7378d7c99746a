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
	"maps"
	"reflect"
	"strconv"
	"sync"
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

// Apart returns the item for one reader alone: encodings that nobody has asked for yet
// are made for him and not kept. Most objects are never read again in the form in
// which their writer has his answer, and take half the memory without it.
func (i *Item) Apart() *Item {
	if i.json.Load() != nil || i.proto.Load() != nil {
		return i
	}
	out := &Item{Key: i.Key, Object: i.Object, Revision: i.Revision}
	out.other.Store(i.other.Load())
	return out
}

// replaced forgets the encodings of an item that is no longer the present one: only
// watches that are behind may still want them.
func (i *Item) replaced() {
	i.json.Store(nil)
	i.proto.Store(nil)
}

// Stamped is the object as of another revision. It shares all but that with obj.
func Stamped(key string, obj kind.Object, revision int64) *Item {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		content := maps.Clone(u.Object)
		if meta, ok := content["metadata"].(map[string]any); ok {
			content["metadata"] = maps.Clone(meta)
		}
		return NewItem(key, &unstructured.Unstructured{Object: content}, revision)
	}
	v := reflect.ValueOf(obj).Elem()
	out := reflect.New(v.Type())
	out.Elem().Set(v)
	return NewItem(key, out.Interface().(kind.Object), revision)
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
	e := encoders.Get().(*encoder)
	if err := e.json.Encode(v); err != nil {
		return nil, err
	}
	out := bytes.Clone(bytes.TrimSuffix(e.buf.Bytes(), []byte("\n")))
	if e.buf.Cap() <= usualJSON {
		e.buf.Reset()
		encoders.Put(e)
	}
	return out, nil
}

// encoder is used again and again: what it makes is copied to where it just fits.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder
}

// usualJSON is the capacity in bytes up to which a buffer is kept for the next object.
const usualJSON = 64 << 10

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(true) // as Kubernetes' own serializer
	return e
}}

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
