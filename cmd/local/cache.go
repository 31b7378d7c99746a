package local

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/client"
)

// Cache implements client.Interface: a view on the server's own cache.
func (c *Client) Cache(r client.Resource, fieldSelector string) client.Cache {
	if f := c.far(r); f != nil {
		return f.Cache(r, fieldSelector)
	}
	res := c.s.Registry.Resource(r)
	if res == nil {
		return empty{}
	}
	v := &cache{res: res, match: func(client.Object) bool { return true }}
	if sel, err := fields.ParseSelector(fieldSelector); err == nil && !sel.Empty() {
		v.match = func(o client.Object) bool {
			set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
			if p, ok := o.(*corev1.Pod); ok {
				set["spec.nodeName"] = p.Spec.NodeName
			}
			if res.Fields != nil {
				for k, val := range res.Fields(o) {
					set[k] = val
				}
			}
			return sel.Matches(set)
		}
	}
	return v
}

type cache struct {
	res   *registry.Resource
	match func(client.Object) bool
}

func (v *cache) Get(namespace, name string) (client.Object, bool) {
	key := name
	if v.res.Namespaced {
		key = namespace + "/" + name
	}
	it := v.res.Cache.Get(key)
	if it == nil || !v.match(it.Object) {
		return nil, false
	}
	return it.Object, true
}

func (v *cache) List(namespace string, sel labels.Selector, visit func(client.Object) bool) {
	prefix := ""
	if namespace != "" {
		prefix = namespace + "/"
	}
	v.res.Cache.Snapshot().Ascend(prefix, "", func(i *watchcache.Item) bool {
		if !v.match(i.Object) || sel != nil && !sel.Matches(labels.Set(i.Object.GetLabels())) {
			return true
		}
		return visit(i.Object)
	})
}

// WaitSynced returns at once: the server's cache is filled before it serves.
func (v *cache) WaitSynced(context.Context) error { return nil }

func (v *cache) Subscribe(fn func(client.Event)) (cancel func()) {
	ctx, stop := context.WithCancel(context.Background()) // ended by cancel
	var done sync.WaitGroup
	// The first state is that of this moment: no change from here on is missed or
	// folded into it.
	snap, w := v.res.Cache.SnapshotAndWatch()
	done.Go(func() { v.deliver(ctx, snap, w, fn) })
	return func() {
		stop()
		done.Wait()
	}
}

// deliver runs one subscription. A subscriber that falls behind the cache's
// memory of events gets the difference between what it saw and what is there.
func (v *cache) deliver(ctx context.Context, snap *watchcache.Snapshot, w *watchcache.Watcher, fn func(client.Event)) {
	seen := map[string]client.Object{}
	for {
		present := map[string]bool{}
		snap.Ascend("", "", func(i *watchcache.Item) bool {
			present[i.Key] = true
			v.change(seen, i.Key, i.Object, fn)
			return ctx.Err() == nil
		})
		for key := range seen {
			if !present[key] && ctx.Err() == nil {
				v.change(seen, key, nil, fn)
			}
		}
		for {
			events, err := w.Next(ctx)
			if err != nil {
				break // ended, or too slow: start again from a snapshot
			}
			for _, e := range events {
				if e.Type == watchcache.Deleted {
					v.change(seen, e.Item.Key, nil, fn)
				} else {
					v.change(seen, e.Item.Key, e.Item.Object, fn)
				}
			}
		}
		w.Stop()
		if ctx.Err() != nil {
			return
		}
		snap, w = v.res.Cache.SnapshotAndWatch()
	}
}

// change tells the subscriber what obj (nil: gone) means to it.
func (v *cache) change(seen map[string]client.Object, key string, obj client.Object, fn func(client.Event)) {
	old := seen[key]
	if obj != nil && !v.match(obj) {
		obj = nil
	}
	switch {
	case obj == nil && old == nil:
	case obj == nil:
		delete(seen, key)
		fn(client.Event{Type: client.Deleted, Object: old, Old: old})
	case old == nil:
		seen[key] = obj
		fn(client.Event{Type: client.Added, Object: obj})
	case old.GetResourceVersion() != obj.GetResourceVersion():
		seen[key] = obj
		fn(client.Event{Type: client.Modified, Object: obj, Old: old})
	}
}

// empty is the cache of a resource that is not served.
type empty struct{}

func (empty) Get(string, string) (client.Object, bool)               { return nil, false }
func (empty) List(string, labels.Selector, func(client.Object) bool) {}
func (empty) WaitSynced(context.Context) error                       { return nil }
func (empty) Subscribe(func(client.Event)) (cancel func())           { return func() {} }
