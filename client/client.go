// Package client is the only door to the API for knarr's own components.
//
// One small Interface serves controllers, scheduler, agent and delivery. There
// are two implementations: in process it calls the API server's registry
// directly, under the component's own identity, and hands out the server's own
// objects; remotely it is HTTP with caches filled by watches. Components never
// know which one they hold.
//
// Objects returned by Get, by the caches and by events are shared and must not
// be changed: DeepCopy first. Objects passed to Create and Update belong to the
// client afterwards.
package client

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Object is any API object: a type of k8s.io/api or an unstructured one.
type Object interface {
	metav1.Object
	runtime.Object
}

// Resource names a kind's collection, for example {apps v1 deployments}.
type Resource = schema.GroupVersionResource

// Key addresses one object or one of its subresources.
type Key struct {
	Resource    Resource
	Namespace   string // empty for cluster-scoped kinds
	Name        string // empty in Create when metadata.name or generateName decides
	Subresource string // "status", "scale", "binding", "token", ...; empty for the object itself
}

// Sub returns the key of a subresource of the same object.
func (k Key) Sub(name string) Key {
	k.Subresource = name
	return k
}

// String prints resource/namespace/name, for errors and logs.
func (k Key) String() string {
	s := k.Resource.Resource
	if k.Namespace != "" {
		s += " " + k.Namespace + "/" + k.Name
	} else {
		s += " " + k.Name
	}
	if k.Subresource != "" {
		s += " (" + k.Subresource + ")"
	}
	return s
}

// Patch is a change in one of the API's patch formats.
type Patch struct {
	Type         types.PatchType
	Data         []byte
	FieldManager string // required for types.ApplyPatchType
	Force        bool   // only for types.ApplyPatchType
}

// ResourceInfo describes a served resource.
type ResourceInfo struct {
	Resource   Resource
	Kind       string
	Namespaced bool
	Verbs      []string
	// StorageVersionHash is [kind.StorageVersionHash] of what is stored; empty: unknown.
	StorageVersionHash string
	// Extension: an extension server serves it, which may not answer.
	Extension bool
}

// Interface reads and writes API objects. Errors are those of
// k8s.io/apimachinery/pkg/api/errors: test them with apierrors.IsNotFound and
// its like.
type Interface interface {
	// Get reads the object as it is now (a consistent read).
	Get(ctx context.Context, k Key) (Object, error)
	// Create makes an object, or posts obj to the subresource that k names, and
	// returns what the server answers.
	Create(ctx context.Context, k Key, obj Object) (Object, error)
	// Update replaces the object, or its subresource. A resourceVersion in obj
	// makes it conditional (Conflict when the stored one differs).
	Update(ctx context.Context, k Key, obj Object) (Object, error)
	// Patch changes the object or its subresource.
	Patch(ctx context.Context, k Key, p Patch) (Object, error)
	// Delete asks for deletion; nil means accepted, not gone.
	Delete(ctx context.Context, k Key, opts metav1.DeleteOptions) error
	// Cache returns the shared cache of a resource, starting it if needed. A
	// field selector such as "spec.nodeName=a" restricts what a remote client
	// transfers; the empty string means everything. Conjunctions are written with
	// commas; metadata.namespace=a asks for that namespace alone. A cache that has
	// lost its last subscriber may have stopped: ask for it anew.
	Cache(r Resource, fieldSelector string) Cache
	// Resources lists what the server serves now, CRDs and extension servers
	// included. If some of these do not answer, the rest is returned together with a
	// discovery.ErrGroupDiscoveryFailed.
	Resources(ctx context.Context) ([]ResourceInfo, error)
}

// EventType says what happened to a cached object.
type EventType int

// The event types of a Cache.
const (
	Added EventType = iota
	Modified
	Deleted
)

// Event is one change of a cached object. Old is nil for Added.
type Event struct {
	Type   EventType
	Object Object // for Deleted: the last state
	Old    Object
}

// Cache is an eventually consistent view of one resource, always in one
// revision's state. A component's own successful writes are visible in it when
// the write returns (in process) or soon after (remotely).
type Cache interface {
	// Get returns an object, or nil and false.
	Get(namespace, name string) (Object, bool)
	// List visits the objects of a namespace ("" for all) that match sel (nil
	// for all) in key order until visit returns false.
	List(namespace string, sel labels.Selector, visit func(Object) bool)
	// WaitSynced blocks until the cache holds the state of some moment after
	// the call to Interface.Cache.
	WaitSynced(ctx context.Context) error
	// Subscribe calls fn with Added for each present object and then with every
	// change, in order, one call at a time, until cancel is called. fn must not
	// block: it queues work.
	Subscribe(fn func(Event)) (cancel func())
}

// Get reads one object as its concrete type.
func Get[T Object](ctx context.Context, c Interface, k Key) (T, error) {
	var zero T
	obj, err := c.Get(ctx, k)
	if err != nil {
		return zero, err
	}
	t, ok := obj.(T)
	if !ok {
		return zero, fmt.Errorf("get %s: server answered a %T, want %T", k, obj, zero)
	}
	return t, nil
}

// Cached reads one object from a cache as its concrete type.
func Cached[T Object](c Cache, namespace, name string) (T, bool) {
	var zero T
	obj, ok := c.Get(namespace, name)
	if !ok {
		return zero, false
	}
	t, ok := obj.(T)
	return t, ok
}

// ListCached collects the objects of a namespace that match sel.
func ListCached[T Object](c Cache, namespace string, sel labels.Selector) []T {
	var out []T
	c.List(namespace, sel, func(o Object) bool {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
		return true
	})
	return out
}
