package engine

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/client"
)

// KeyOf names an object.
func KeyOf(o metav1.Object) Key { return Key{Namespace: o.GetNamespace(), Name: o.GetName()} }

// Self maps an event to the object itself.
func Self(_ *Env, ev client.Event) []Key { return []Key{KeyOf(ev.Object)} }

// Owner maps an event to the controlling owners, now and before, of one kind.
func Owner(kind string) func(*Env, client.Event) []Key {
	return func(_ *Env, ev client.Event) []Key {
		keys := ownerKey(nil, kind, ev.Object)
		if ev.Old != nil {
			keys = ownerKey(keys, kind, ev.Old)
		}
		return keys
	}
}

func ownerKey(keys []Key, kind string, o client.Object) []Key {
	if ref := metav1.GetControllerOfNoCopy(o); ref != nil && ref.Kind == kind {
		return append(keys, Key{Namespace: o.GetNamespace(), Name: ref.Name})
	}
	return keys
}

// OwnerOrMatch is Owner, and for an object without controller the owners in r
// whose selector matches its labels: they may want to adopt it.
func OwnerOrMatch(kind string, r client.Resource, selector func(client.Object) labels.Selector) func(*Env, client.Event) []Key {
	owner := Owner(kind)
	return func(env *Env, ev client.Event) []Key {
		keys := owner(env, ev)
		if metav1.GetControllerOfNoCopy(ev.Object) != nil || ev.Type == client.Deleted {
			return keys
		}
		env.Cache(r).List(ev.Object.GetNamespace(), nil, func(o client.Object) bool {
			if s := selector(o); s != nil && !s.Empty() && s.Matches(labels.Set(ev.Object.GetLabels())) {
				keys = append(keys, KeyOf(o))
			}
			return true
		})
		return keys
	}
}

// SelectorOf parses a label selector; an invalid one matches nothing.
func SelectorOf(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return sel
}
