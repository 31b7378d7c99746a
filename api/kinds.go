// Package api lists every kind that the server knows. Adding a kind is one file
// in its group's folder and one line here.
package api

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/api/legacy"
)

// Kinds returns the served kinds, in the order in which discovery shows them.
// Each call returns new values.
func Kinds() []*kind.Kind {
	kinds := table()
	kinds = append(kinds, legacy.Kinds(kinds)...)
	for _, k := range kinds {
		complete(k)
	}
	return kinds
}

// complete fills what follows from a kind's names.
func complete(k *kind.Kind) {
	gvk := k.GVK()
	if k.Singular == "" {
		k.Singular = strings.ToLower(k.Kind)
	}
	if k.HasStatus && k.PrepareStatus == nil {
		k.PrepareStatus = kind.KeepAllButStatus
	}
	if k.ListKind == "" {
		k.ListKind = k.Kind + "List"
	}
	if k.New == nil {
		k.New = maker[kind.Object](gvk)
	}
	if k.NewList == nil {
		gvk.Kind += "List"
		k.NewList = maker[runtime.Object](gvk)
	}
	if k.Storage == "" {
		k.Storage = k.Resource
		if strings.Contains(k.Group, ".") {
			// Kubernetes keeps its own groups under the bare resource name too.
			if !strings.HasSuffix(k.Group, ".k8s.io") {
				k.Storage = k.Group + "/" + k.Resource
			}
		}
	}
}

func maker[T any](gvk schema.GroupVersionKind) func() T {
	t, ok := scheme.Scheme.AllKnownTypes()[gvk]
	if !ok {
		return nil
	}
	return func() T { return reflect.New(t).Interface().(T) }
}
