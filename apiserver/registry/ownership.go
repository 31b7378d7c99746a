package registry

import (
	"cmp"
	"crypto/sha256"
	"reflect"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"knarr.dev/knarr/api/kind"
)

// Finding out who owns what is the dearest part of a write, and most writes do
// to an object what another did to its like: ownerships remembers the outcomes
// by the shape of the write. The newest half is kept when it is full.
type ownerships struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]ownership
}

// maxOwnerships bounds each of the two halves.
const maxOwnerships = 1024

// ownership is the managed fields that a write leaves.
type ownership []ownedFields

type ownedFields struct {
	metav1.ManagedFieldsEntry                // its FieldsV1 is shared by all objects of the shape
	since                     int            // index of the present entry that gives the time; -1: now
	set                       map[string]any // FieldsV1 for custom objects, which share it
}

func (c *ownerships) find(key [sha256.Size]byte) (ownership, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o, ok := c.young[key]; ok {
		return o, true
	}
	o, ok := c.old[key]
	if ok {
		c.add(key, o)
	}
	return o, ok
}

func (c *ownerships) keep(key [sha256.Size]byte, o ownership) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(key, o)
}

func (c *ownerships) add(key [sha256.Size]byte, o ownership) {
	if c.young == nil || len(c.young) >= maxOwnerships {
		c.old, c.young = c.young, map[[sha256.Size]byte]ownership{}
	}
	c.young[key] = o
}

// maxKnownManagers: with this many, old managers may be merged by age, which no
// shape tells.
const maxKnownManagers = 10

// shapes are those that nobody uses, for their room.
var shapes sync.Pool

// ownershipKey sums up all that decides which managed fields a write by
// q.FieldManager leaves when obj, sent with some, replaces old, which has those
// present. ok is false for writes whose
// outcome cannot be remembered.
func ownershipKey(q *Request, old, obj kind.Object, present, sent []metav1.ManagedFieldsEntry) (key [sha256.Size]byte, ok bool) {
	if len(present) >= maxKnownManagers || sent != nil && !returned(sent, present) {
		return key, false // a client that edits managed fields itself
	}
	a, b := reflect.ValueOf(old), reflect.ValueOf(obj)
	if a.Kind() != reflect.Pointer || a.Type() != b.Type() {
		return key, false
	}
	custom, _ := old.(*unstructured.Unstructured)
	gvk := q.Resource.hub.GVK()
	version := gvk.GroupVersion().String()
	s, _ := shapes.Get().(*shape)
	if s == nil {
		s = new(shape)
	}
	defer shapes.Put(s)
	s.bytes, s.vague = s.bytes[:0], false
	for _, t := range []string{version, gvk.Kind, q.Subresource, q.FieldManager} {
		s.text(t)
	}
	s.number(int(q.Resource.hub.epoch))
	s.number(len(present))
	for i := range present {
		e := &present[i]
		if e.APIVersion != version || e.FieldsV1 == nil || e.Time == nil {
			return key, false
		}
		for _, t := range []string{e.Manager, string(e.Operation), e.FieldsType, e.Subresource} {
			s.text(t)
		}
		s.number(len(e.FieldsV1.Raw))
		s.bytes = append(s.bytes, e.FieldsV1.Raw...)
	}
	if custom != nil {
		s.customChange(custom.Object, obj.(*unstructured.Unstructured).Object)
	} else {
		s.change(a.Type(), a, b)
	}
	return sha256.Sum256(s.bytes), !s.vague
}

// returned tells whether a client sent back the managed fields that it had read.
func returned(sent, present []metav1.ManagedFieldsEntry) bool {
	if len(sent) == 0 || !sameManagedFields(sent, present) {
		return false
	}
	for i := range sent {
		s, p := sent[i].Time, present[i].Time
		if s == nil || p == nil || s.Unix() != p.Unix() || sent[i].FieldsType != present[i].FieldsType {
			return false
		}
	}
	return true
}

// ownershipOf separates from the managed fields that a write of q left obj what
// belongs to the object alone: the times.
func ownershipOf(q *Request, before []metav1.ManagedFieldsEntry, obj kind.Object) (ownership, bool) {
	after := owned(obj)
	_, custom := obj.(*unstructured.Unstructured)
	o := make(ownership, len(after))
	for i, e := range after {
		if e.Time == nil || e.FieldsV1 == nil {
			return nil, false
		}
		o[i].ManagedFieldsEntry = e
		o[i].Time = nil
		o[i].since = slices.IndexFunc(before, func(b metav1.ManagedFieldsEntry) bool {
			return sameManager(&b, &e) && (custom && !q.wrote(&e) || b.Time == e.Time)
		})
		if custom {
			var err error
			if o[i].set, err = setOf(e.FieldsV1); err != nil {
				return nil, false
			}
		}
	}
	return o, len(o) > 0
}

// wrote tells whether an entry is the one of q's own manager, whose time a write
// renews while those of others stay: where objects have no Go types, the pointers of
// the times do not tell.
func (q *Request) wrote(e *metav1.ManagedFieldsEntry) bool {
	return e.Manager == q.FieldManager && e.Subresource == q.Subresource && (e.Operation == metav1.ManagedFieldsOperationApply) == q.applied
}

func sameManager(a, b *metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.APIVersion == b.APIVersion && a.Subresource == b.Subresource
}

// after returns the entries, with times, for an object that had those of before.
func (o ownership) after(before []metav1.ManagedFieldsEntry, now time.Time) []ownedFields {
	out := slices.Clone(o)
	for i := range out {
		if since := out[i].since; since >= 0 {
			out[i].Time = before[since].Time
		} else {
			out[i].Time = &metav1.Time{Time: now.UTC()}
		}
	}
	slices.SortFunc(out, func(a, b ownedFields) int {
		return cmp.Or(cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Time.Unix(), b.Time.Unix()),
			cmp.Compare(a.Manager, b.Manager), cmp.Compare(a.APIVersion, b.APIVersion), cmp.Compare(a.Subresource, b.Subresource))
	})
	return out
}
