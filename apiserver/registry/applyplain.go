package registry

import (
	"crypto/sha256"
	"maps"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
)

// plainApply is the short way of a server-side apply whose configuration only sets
// values. Where the general way was seen to do no more than that to an object of the
// same shape (no field taken back, no list merged, nothing replaced as a whole), and
// to leave these managed fields, it does so to all objects of the shape.
type plainApply struct {
	q      *Request
	data   []byte
	config map[string]any // what data decodes to
	// set is the shape of the configuration: the fields that it owns.
	set []byte
}

// newPlainApply returns nil if a configuration, given as JSON and as what that
// decodes to, cannot go the short way.
func newPlainApply(q *Request, data []byte, config map[string]any) *plainApply {
	res := q.Resource
	if res.IsView() {
		return nil
	}
	gvk := res.GVK()
	if config["kind"] != gvk.Kind || config["apiVersion"] != gvk.GroupVersion().String() {
		return nil
	}
	if res.Custom != nil {
		if !plainMap(config) {
			return nil
		}
	} else if t := reflect.TypeOf(res.New()); t.Kind() != reflect.Pointer || !plain(t, config) {
		return nil
	}
	s := shape{bytes: make([]byte, 0, 256)}
	s.text(q.FieldManager)
	s.configured(config)
	if q.Force {
		s.put(1)
	}
	return &plainApply{q: q, data: data, config: config, set: s.bytes}
}

// plainMap tells whether merging m into a custom object only sets values.
func plainMap(m map[string]any) bool {
	for _, v := range m {
		switch v := v.(type) {
		case nil, []any:
			return false
		case map[string]any:
			if !plainMap(v) {
				return false
			}
		}
	}
	return true
}

// configured adds which fields a configuration sets, to which type of value, and
// which of them to nothing.
func (s *shape) configured(v any) {
	switch v := v.(type) {
	case map[string]any:
		s.number(len(v))
		for _, name := range slices.Sorted(maps.Keys(v)) {
			s.text(name)
			s.configured(v[name])
		}
	default:
		r := reflect.ValueOf(v)
		s.put(byte(r.Kind()))
		s.put(presence(r))
	}
}

// apply returns live with the configuration, and the key under which its outcome is
// remembered; known: it is, and the managed fields are set. obj is nil if this
// configuration has to go the general way.
func (p *plainApply) apply(r *Registry, live kind.Object) (obj kind.Object, key [sha256.Size]byte, known bool) {
	obj = live.DeepCopyObject().(kind.Object)
	if u, ok := obj.(*unstructured.Unstructured); ok {
		mergeMaps(u.Object, p.config)
	} else if out, _, err := codec.Decode(p.data, codec.JSON, p.q.Resource.GVK(), obj, true); err != nil || out != obj {
		return nil, key, false // such as a field that is unknown or appears twice
	}
	before := owned(live)
	change, ok := ownershipKey(p.q, live, obj, before, before)
	if !ok {
		return nil, key, false
	}
	h := sha256.New()
	h.Write(change[:])
	h.Write(p.set)
	h.Sum(key[:0])
	if o, ok := r.ownerships.find(key); ok {
		o.own(obj, before, r.cfg.Now())
		return obj, key, true
	}
	return obj, key, false
}

// learn remembers what the general way did to an object with the managed fields
// before, if the short way does the same to its values.
func (p *plainApply) learn(r *Registry, key [sha256.Size]byte, before []metav1.ManagedFieldsEntry, short, general kind.Object) {
	o, ok := ownershipOf(p.q, before, general)
	if !ok {
		return
	}
	a, b := short, general.DeepCopyObject().(kind.Object)
	for _, obj := range []kind.Object{a, b} {
		codec.SetType(obj, p.q.Resource.GVK())
		r.default_(p.q.Resource.hub, obj)
		obj.SetManagedFields(nil)
	}
	if check.Same(a, b) {
		r.ownerships.keep(key, o)
	}
}
