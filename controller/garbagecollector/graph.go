package garbagecollector

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
)

// vertex is what the graph knows of an object.
type vertex struct {
	uid    types.UID
	key    client.Key
	owners []metav1.OwnerReference
	// foreground: it is being deleted and waits for its dependents.
	foreground bool
}

// graph is who owns whom. Its methods may be called from several goroutines.
type graph struct {
	mu         sync.Mutex
	vertices   map[types.UID]*vertex
	dependents map[types.UID]map[types.UID]bool // by owner, which may be unknown
}

func newGraph() *graph {
	return &graph{vertices: map[types.UID]*vertex{}, dependents: map[types.UID]map[types.UID]bool{}}
}

func foreground(o metav1.Object) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents)
}

func orphaning(o metav1.Object) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents)
}

// set takes an object's state in and returns the objects to look at.
func (g *graph) set(r client.Resource, o client.Object) (look []types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.vertices[o.GetUID()]
	fresh := v == nil
	if fresh {
		v = &vertex{uid: o.GetUID(), key: client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}}
		g.vertices[v.uid] = v
	}
	owners := o.GetOwnerReferences()
	changed := !slices.EqualFunc(v.owners, owners, func(a, b metav1.OwnerReference) bool { return a.UID == b.UID && blocks(a) == blocks(b) })
	if changed {
		for _, ref := range v.owners {
			look = append(look, g.unlink(ref.UID, v.uid)...)
		}
		for _, ref := range owners {
			if g.dependents[ref.UID] == nil {
				g.dependents[ref.UID] = map[types.UID]bool{}
			}
			g.dependents[ref.UID][v.uid] = true
		}
		v.owners = slices.Clone(owners)
	}
	v.foreground = foreground(o)
	if v.foreground || orphaning(o) || (len(owners) > 0 && (fresh || changed) && g.suspicious(v)) {
		look = append(look, v.uid)
	}
	return look
}

// suspicious tells whether an owner is unknown or waits for its dependents.
func (g *graph) suspicious(v *vertex) bool {
	return slices.ContainsFunc(v.owners, func(ref metav1.OwnerReference) bool {
		o := g.vertices[ref.UID]
		return o == nil || o.foreground
	})
}

// unlink removes an edge; an owner that waits for its dependents is looked at.
func (g *graph) unlink(owner, dependent types.UID) []types.UID {
	delete(g.dependents[owner], dependent)
	if len(g.dependents[owner]) == 0 {
		delete(g.dependents, owner)
	}
	if o := g.vertices[owner]; o != nil && o.foreground {
		return []types.UID{owner}
	}
	return nil
}

// remove forgets an object that is gone and returns the objects to look at: its
// dependents, and owners that waited for it.
func (g *graph) remove(uid types.UID) (look []types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.vertices[uid]
	if v == nil {
		return nil
	}
	delete(g.vertices, uid)
	for _, ref := range v.owners {
		look = append(look, g.unlink(ref.UID, uid)...)
	}
	for d := range g.dependents[uid] {
		look = append(look, d)
	}
	return look
}

func (g *graph) get(uid types.UID) (vertex, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.vertices[uid]
	if v == nil {
		return vertex{}, false
	}
	return *v, true
}

// of returns an owner's dependents, and how many of them block its deletion.
func (g *graph) of(owner types.UID) (deps []vertex, blocking int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for uid := range g.dependents[owner] {
		v := g.vertices[uid]
		if v == nil {
			continue
		}
		deps = append(deps, *v)
		if slices.ContainsFunc(v.owners, func(ref metav1.OwnerReference) bool { return ref.UID == owner && blocks(ref) }) {
			blocking++
		}
	}
	return deps, blocking
}

func blocks(ref metav1.OwnerReference) bool {
	return ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
}
