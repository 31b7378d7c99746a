// Package legacy declares the old versions of today's kinds, down to those of
// 2016, so that manifests written then apply unchanged. An old version is a view:
// what a client sends is filled with the defaults that its version had, converted
// at the edge and stored as today's kind, and it can be read in either version.
//
// Most old versions have today's shape and are converted by way of JSON; what
// differs has a function in the file of its group. Fields and defaults are those
// that the doc comments of k8s.io/api give; when each version was deprecated is
// read off its type.
package legacy

import (
	"encoding/json"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"knarr.dev/knarr/api/kind"
)

// lifecycle is what the types of k8s.io/api know of their own end.
type lifecycle interface {
	APILifecycleDeprecated() (major, minor int)
	APILifecycleRemoved() (major, minor int)
}

// view is an old version of the kind hub. Of its fields Group and Version must be
// set; what is not follows hub. up fills the old version's defaults in what was
// converted from it, down takes away what it did not have; both may be nil.
func view[Old, Hub any](k kind.Kind, hub *kind.Kind, up func(*Old, *Hub), down func(*Hub, *Old)) *kind.Kind {
	follow(&k, hub)
	k.ToHub = func(o kind.Object) (kind.Object, error) {
		out := new(Hub)
		if err := convert(o, out); err != nil {
			return nil, err
		}
		if up != nil {
			up(any(o).(*Old), out)
		}
		return any(out).(kind.Object), nil
	}
	k.FromHub = func(o kind.Object) (kind.Object, error) {
		out := new(Old)
		if err := convert(o, out); err != nil {
			return nil, err
		}
		if down != nil {
			down(any(o).(*Hub), out)
		}
		return any(out).(kind.Object), nil
	}
	return &k
}

// same is an old version with today's shape and defaults.
func same(group, version string, hub *kind.Kind) *kind.Kind {
	k := kind.Kind{Group: group, Version: version}
	follow(&k, hub)
	old, err := scheme.Scheme.New(k.GVK())
	if err != nil {
		panic(fmt.Sprintf("legacy: %v", err)) // a mistake in the table, which every test meets
	}
	from, to := reflect.TypeOf(old).Elem(), reflect.TypeOf(hubType(hub)).Elem()
	through := func(o any, t reflect.Type) (kind.Object, error) {
		out := reflect.New(t).Interface()
		err := convert(o, out)
		return out.(kind.Object), err
	}
	k.ToHub = func(o kind.Object) (kind.Object, error) { return through(o, to) }
	k.FromHub = func(o kind.Object) (kind.Object, error) { return through(o, from) }
	return &k
}

// hubType returns an empty object of a kind.
func hubType(k *kind.Kind) any {
	if k.New != nil {
		return k.New()
	}
	o, err := scheme.Scheme.New(k.GVK())
	if err != nil {
		panic(fmt.Sprintf("legacy: %v", err))
	}
	return o
}

// follow gives k what an old version has in common with today's. Short names and
// categories stay with today's, so that kubectl shows nothing twice.
func follow(k *kind.Kind, hub *kind.Kind) {
	or := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	or(&k.Kind, hub.Kind)
	or(&k.Resource, hub.Resource)
	k.Namespaced, k.HasStatus, k.Scale, k.NoGeneration = hub.Namespaced, hub.HasStatus, hub.Scale, hub.NoGeneration
	k.Hub = hub.GVK()
	if k.Deprecated == "" {
		if o, err := scheme.Scheme.New(k.GVK()); err == nil {
			if l, ok := o.(lifecycle); ok {
				k.Deprecated = deprecation(k.GVK(), hub.GVK(), l)
			}
		}
	}
}

// deprecation is the warning that Kubernetes sends with answers in an old version.
func deprecation(old, hub schema.GroupVersionKind, l lifecycle) string {
	major, minor := l.APILifecycleDeprecated()
	goneMajor, goneMinor := l.APILifecycleRemoved()
	return warning(old, hub, fmt.Sprintf("v%d.%d", major, minor), fmt.Sprintf("v%d.%d", goneMajor, goneMinor))
}

func warning(old, hub schema.GroupVersionKind, deprecated, removed string) string {
	return fmt.Sprintf("%s %s is deprecated in %s+, unavailable in %s+; use %s %s", old.GroupVersion(), old.Kind, deprecated, removed, hub.GroupVersion(), hub.Kind)
}

// convert copies what two types have in common by their JSON.
func convert(from, to any) error {
	b, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	if err != nil {
		return fmt.Errorf("convert a %T to a %T: %w", from, to, err)
	}
	return nil
}

// orNew sets *p to point to v unless it points somewhere.
func orNew[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
