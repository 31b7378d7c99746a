package local

import (
	"context"

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
	v := &cache{res: res, feeds: &c.s.feeds, match: func(client.Object) bool { return true }}
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
	feeds *feeds
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
	return v.feeds.subscribe(v.res.Cache, v.match, fn)
}

// empty is the cache of a resource that is not served.
type empty struct{}

func (empty) Get(string, string) (client.Object, bool)               { return nil, false }
func (empty) List(string, labels.Selector, func(client.Object) bool) {}
func (empty) WaitSynced(context.Context) error                       { return nil }
func (empty) Subscribe(func(client.Event)) (cancel func())           { return func() {} }
