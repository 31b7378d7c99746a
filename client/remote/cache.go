package remote

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/btree"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	clientcache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"knarr.dev/knarr/client"
)

// Pauses after a server that could not be reached or refused.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = 10 * time.Second
)

type cacheKey struct {
	resource client.Resource
	selector string
}

// cache holds what matches one selector. Its reflector begins when it is asked for
// and ends with the last subscription, if it has had any.
type cache struct {
	c      *Client
	key    cacheKey
	synced chan struct{}
	stop   context.CancelFunc

	mu   sync.Mutex
	tree *btree.BTreeG[item]
	full bool // synced is closed
	subs map[*subscription]struct{}
}

type item struct {
	key string
	obj client.Object
}

func keyOf(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// Cache implements client.Interface. The selector metadata.namespace=x restricts
// the request to that namespace, so that a permission there is enough.
func (c *Client) Cache(r client.Resource, fieldSelector string) client.Cache {
	key := cacheKey{r, fieldSelector}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.caches[key]; v != nil {
		return v
	}
	v := &cache{
		c: c, key: key, synced: make(chan struct{}), subs: map[*subscription]struct{}{},
		tree: btree.NewG(32, func(a, b item) bool { return a.key < b.key }),
	}
	ctx, stop := context.WithCancel(c.ctx)
	v.stop = stop
	c.caches[key] = v
	c.wg.Go(func() { v.run(ctx) })
	return v
}

// run follows the server until ctx ends.
func (v *cache) run(ctx context.Context) {
	logger := klog.Logger(logr.FromSlogHandler(quiet{v.c.log.Handler()}))
	r := clientcache.NewReflectorWithOptions(v.listWatch(), nil, (*store)(v), clientcache.ReflectorOptions{
		Name: v.key.resource.Resource, TypeDescription: v.key.resource.String(), Logger: &logger,
		Backoff: &wait.Backoff{Duration: firstPause, Factor: 2, Jitter: 0.2, Steps: 30, Cap: maxPause},
	})
	r.RunWithContext(klog.NewContext(ctx, logger))
}

// listWatch speaks to the server about what the cache selects.
func (v *cache) listWatch() *clientcache.ListWatch {
	k := client.Key{Resource: v.key.resource}
	sel, err := fields.ParseSelector(v.key.selector)
	if err != nil {
		sel = fields.Nothing()
	}
	if ns, ok := sel.RequiresExactMatch("metadata.namespace"); ok {
		k.Namespace = ns
		if sel, err = sel.Transform(func(field, value string) (string, string, error) {
			if field == "metadata.namespace" {
				return "", "", nil
			}
			return field, value, nil
		}); err != nil {
			sel = fields.Nothing()
		}
	}
	return &clientcache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = sel.String()
			return v.c.list(ctx, k, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = sel.String()
			return v.c.watch(ctx, k, o)
		},
	}
}

func (c *Client) list(ctx context.Context, k client.Key, o metav1.ListOptions) (runtime.Object, error) {
	if !typed(k.Resource.GroupVersion()) {
		d, err := c.dynamic(k)
		if err != nil {
			return nil, err
		}
		return d.List(ctx, o)
	}
	r, err := c.request("GET", k)
	if err != nil {
		return nil, err
	}
	return r.VersionedParams(&o, scheme.ParameterCodec).Do(ctx).Get()
}

func (c *Client) watch(ctx context.Context, k client.Key, o metav1.ListOptions) (watch.Interface, error) {
	if !typed(k.Resource.GroupVersion()) {
		d, err := c.dynamic(k)
		if err != nil {
			return nil, err
		}
		return d.Watch(ctx, o)
	}
	r, err := c.request("GET", k)
	if err != nil {
		return nil, err
	}
	o.Watch = true
	return r.VersionedParams(&o, scheme.ParameterCodec).Watch(ctx)
}

// Get implements client.Cache.
func (v *cache) Get(namespace, name string) (client.Object, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	it, ok := v.tree.Get(item{key: keyOf(namespace, name)})
	return it.obj, ok
}

// List implements client.Cache.
func (v *cache) List(namespace string, sel labels.Selector, visit func(client.Object) bool) {
	v.mu.Lock()
	t := v.tree.Clone()
	v.mu.Unlock()
	each := func(it item) bool {
		if sel != nil && !sel.Matches(labels.Set(it.obj.GetLabels())) {
			return true
		}
		return visit(it.obj)
	}
	if namespace == "" {
		t.Ascend(each)
		return
	}
	// '0' follows '/'.
	t.AscendRange(item{key: namespace + "/"}, item{key: namespace + "0"}, each)
}

// WaitSynced implements client.Cache.
func (v *cache) WaitSynced(ctx context.Context) error {
	select {
	case <-v.synced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-v.c.ctx.Done():
		return fmt.Errorf("cache of %s: the client is closed", v.key.resource.Resource)
	}
}

// Subscribe implements client.Cache.
func (v *cache) Subscribe(fn func(client.Event)) (cancel func()) {
	s := newSubscription(fn)
	v.mu.Lock()
	v.tree.Ascend(func(it item) bool {
		s.push(client.Event{Type: client.Added, Object: it.obj})
		return true
	})
	v.subs[s] = struct{}{}
	v.mu.Unlock()
	var once sync.Once
	return func() { once.Do(func() { v.leave(s) }) }
}

// leave ends a subscription, and the cache with its last one.
func (v *cache) leave(s *subscription) {
	v.c.mu.Lock()
	v.mu.Lock()
	delete(v.subs, s)
	if len(v.subs) == 0 {
		v.stop()
		if v.c.caches[v.key] == v {
			delete(v.c.caches, v.key)
		}
	}
	v.mu.Unlock()
	v.c.mu.Unlock()
	s.end()
}

// store is a cache as the reflector sees it.
type store cache

// Add implements the reflector's store.
func (s *store) Add(obj any) error { return s.put(obj) }

// Update implements the reflector's store.
func (s *store) Update(obj any) error { return s.put(obj) }

func (s *store) put(obj any) error {
	o, ok := obj.(client.Object)
	if !ok {
		return fmt.Errorf("the server sent a %T", obj)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(o)
	return nil
}

// set enters an object and tells subscribers; the lock is held. What is known
// already, as after a watch that was begun anew, is no event.
func (s *store) set(o client.Object) {
	it := item{keyOf(o.GetNamespace(), o.GetName()), o}
	old, had := s.tree.Get(it)
	if had && old.obj.GetResourceVersion() == o.GetResourceVersion() {
		return
	}
	s.tree.ReplaceOrInsert(it)
	switch {
	case !had:
		s.tell(client.Event{Type: client.Added, Object: o})
	case old.obj.GetUID() != o.GetUID():
		// Deleted and made anew while nobody looked.
		s.tell(client.Event{Type: client.Deleted, Object: old.obj, Old: old.obj})
		s.tell(client.Event{Type: client.Added, Object: o})
	default:
		s.tell(client.Event{Type: client.Modified, Object: o, Old: old.obj})
	}
}

// Delete implements the reflector's store.
func (s *store) Delete(obj any) error {
	o, ok := obj.(client.Object)
	if !ok {
		return fmt.Errorf("the server sent a %T", obj)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, had := s.tree.Delete(item{key: keyOf(o.GetNamespace(), o.GetName())}); had {
		s.tell(client.Event{Type: client.Deleted, Object: o, Old: old.obj})
	}
	return nil
}

// Replace implements the reflector's store: subscribers get the differences.
func (s *store) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	present := make(map[string]bool, len(list))
	for _, obj := range list {
		o, ok := obj.(client.Object)
		if !ok {
			return fmt.Errorf("the server sent a %T", obj)
		}
		present[keyOf(o.GetNamespace(), o.GetName())] = true
	}
	s.tree.Clone().Ascend(func(it item) bool {
		if !present[it.key] {
			s.tree.Delete(it)
			s.tell(client.Event{Type: client.Deleted, Object: it.obj, Old: it.obj})
		}
		return true
	})
	for _, obj := range list {
		s.set(obj.(client.Object))
	}
	if !s.full {
		s.full = true
		close(s.synced)
	}
	return nil
}

// Resync implements the reflector's store; nothing is to be repeated.
func (s *store) Resync() error { return nil }

func (s *store) tell(e client.Event) {
	for sub := range s.subs {
		sub.push(e)
	}
}
