// Package admission holds the steps that each write passes after authorization,
// in one ordered list. A step is a file here and a line in List.
package admission

import (
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

// Lookup reads an object from the caches; nil if it does not exist.
type Lookup func(gvr schema.GroupVersionResource, namespace, name string) kind.Object

// Each visits all objects of a resource in the caches.
type Each func(gvr schema.GroupVersionResource, namespace string, visit func(kind.Object) bool)

// Deps is what steps may ask. The functions must work by the time of the first
// write.
type Deps struct {
	Lookup Lookup
	Each   Each
	Now    func() time.Time
}

// List returns the steps in their order.
func List(d Deps) []registry.Admission {
	return []registry.Admission{
		namespaceLifecycle(d),
		serviceAccount(d),
		priority(d),
		tolerations(),
		runtimeClass(),
	}
}

var pods = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

func isPod(a *registry.Attributes) bool {
	return a.Resource.GVR() == pods && a.Subresource == ""
}
