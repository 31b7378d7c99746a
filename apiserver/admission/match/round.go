package match

import (
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"

	"knarr.dev/knarr/apiserver/registry"
)

// Rounds is what a mutating step remembers between its two rounds: in the second
// only those are asked again that want it and whose object has changed since.
type Rounds struct {
	willing map[string]bool // asked, and willing to be asked again
	again   map[string]bool // to be asked again
	last    runtime.Object  // the object as the round left it
}

// RoundOf begins a step's round about a request.
func RoundOf(a *registry.Attributes, step string) *Rounds {
	r, _ := a.Notes[step].(*Rounds)
	if r == nil {
		r = &Rounds{willing: map[string]bool{}, again: map[string]bool{}}
		a.Note(step, r)
	}
	if a.Again && !equality.Semantic.DeepEqual(r.last, Current(a)) {
		r.Changed()
	}
	return r
}

// Skips tells whether id is not to be asked in this round.
func (r *Rounds) Skips(a *registry.Attributes, id string) bool { return a.Again && !r.again[id] }

// Changed notes a change: those asked so far are to be asked again.
func (r *Rounds) Changed() {
	for id := range r.willing {
		r.again[id] = true
	}
	clear(r.willing)
}

// Willing notes that id was asked and wants to be asked again after changes.
func (r *Rounds) Willing(id string) { r.willing[id] = true }

// End keeps the object for comparison: later steps change it in place.
func (r *Rounds) End(a *registry.Attributes) {
	if o := Current(a); o != nil {
		r.last = o.DeepCopyObject()
	}
}

// Current is what the request is about.
func Current(a *registry.Attributes) runtime.Object {
	if !a.BodyKind.Empty() {
		return a.Body
	}
	if a.Object == nil {
		return nil
	}
	return a.Object
}
