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
	metav1.ManagedFieldsEntry     // its FieldsV1 is shared by all objects of the shape
	since                     int // index of the present entry that gives the time; -1: now
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

// ownershipKey sums up all that decides which managed fields a write by
// q.FieldManager leaves when obj replaces old. ok is false for writes whose
// outcome cannot be remembered.
func ownershipKey(q *Request, old, obj kind.Object) (key [sha256.Size]byte, ok bool) {
	present, sent := old.GetManagedFields(), obj.GetManagedFields()
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
	var s shape
	s.bytes = make([]byte, 0, 2048)
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

// ownershipOf separates from the managed fields after a write what belongs to the
// object alone: the times.
func ownershipOf(before, after []metav1.ManagedFieldsEntry) (ownership, bool) {
	o := make(ownership, len(after))
	for i, e := range after {
		if e.Time == nil {
			return nil, false
		}
		o[i].ManagedFieldsEntry = e
		o[i].Time = nil
		o[i].since = slices.IndexFunc(before, func(b metav1.ManagedFieldsEntry) bool { return b.Time == e.Time && sameManager(&b, &e) })
	}
	return o, len(o) > 0
}

func sameManager(a, b *metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.APIVersion == b.APIVersion && a.Subresource == b.Subresource
}

// entries returns the managed fields of an object that had those of before.
func (o ownership) entries(before []metav1.ManagedFieldsEntry, now time.Time) []metav1.ManagedFieldsEntry {
	out := make([]metav1.ManagedFieldsEntry, len(o))
	for i := range o {
		out[i] = o[i].ManagedFieldsEntry
		if since := o[i].since; since >= 0 {
			out[i].Time = before[since].Time
		} else {
			out[i].Time = &metav1.Time{Time: now.UTC()}
		}
	}
	slices.SortFunc(out, func(a, b metav1.ManagedFieldsEntry) int {
		return cmp.Or(cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Time.Unix(), b.Time.Unix()),
			cmp.Compare(a.Manager, b.Manager), cmp.Compare(a.APIVersion, b.APIVersion), cmp.Compare(a.Subresource, b.Subresource))
	})
	return out
}
