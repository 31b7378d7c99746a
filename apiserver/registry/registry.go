// Package registry is what the API does, without HTTP: create, get, list,
// watch, update, patch and delete of every kind, with their subresources, as
// the API conventions of Kubernetes define them.
//
// A write takes one way for all kinds:
//
//	decode -> default -> admission (mutate) -> prepare -> validate ->
//	admission (validate) -> managed fields -> store (compare and set) ->
//	wait until the watch cache has it -> answer
//
// so that a client that has its answer sees its write in every read.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/store"
)

// Config is what a Registry is made of.
type Config struct {
	Store  store.Store
	Sealer *store.Sealer // nil: secrets are stored in the clear
	Kinds  []*kind.Kind
	// SingleServer: no other server writes to Store, so that the cache has every
	// acknowledged write and consistent reads need not ask the store.
	SingleServer bool
	// Network ranges of services.
	Services ServiceRanges
	// Admit are asked, in order, about each write.
	Admit []Admission
	// Mutated, if set, is told which shared object somebody has changed, and
	// what of it. For tests and debugging: it costs an encoding for each write.
	Mutated func(key, change string)

	Now func() time.Time
	Log *slog.Logger
}

// Registry serves the kinds.
type Registry struct {
	cfg      Config
	hub      *watchcache.Hub
	served   atomic.Pointer[served]
	serving  sync.Mutex // held while served is replaced
	services *serviceAllocator

	converterOnce sync.Once
	converter     managedfields.TypeConverter
	ownerships    ownerships
}

// Resource is a served kind.
type Resource struct {
	*kind.Kind
	Cache  *watchcache.Cache
	hub    *Resource // itself, or the stored kind behind a view
	stored *Resource // of a custom kind: the version that is stored; else nil
	epoch  int64     // of a custom kind: tells its schema from earlier ones
	// Primary is true for one of the resources that share a Cache.
	Primary bool

	mu       sync.Mutex
	managers map[string]*managedfields.FieldManager // by subresource
}

// Open loads the state and returns a registry; Run keeps it current.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	r := &Registry{cfg: cfg}
	first := &served{resources: map[schema.GroupVersionResource]*Resource{}}
	hub, err := watchcache.Open(ctx, cfg.Store, cfg.Kinds, r.decodeStored, cfg.Mutated, cfg.Now, cfg.Log)
	if err != nil {
		return nil, err
	}
	r.hub = hub
	byKind := map[schema.GroupVersionKind]*Resource{}
	for _, k := range cfg.Kinds {
		res := newResource(k, hub.Cache(k))
		res.Primary = k.Hub.Empty()
		byKind[k.GVK()] = res
		first.resources[k.GVR()] = res
		first.ordered = append(first.ordered, res)
	}
	for _, res := range first.ordered {
		if res.Hub.Empty() {
			continue
		}
		if res.hub = byKind[res.Hub]; res.hub == nil {
			return nil, fmt.Errorf("kind %s: its stored form %s is not served", res.GVK(), res.Hub)
		}
		res.Cache = res.hub.Cache
	}
	r.served.Store(first)
	if r.services, err = newServiceAllocator(cfg.Services, cfg.Now, r.Resource(servicesGVR), r.Resource(ipAddressesGVR), r.Resource(serviceCIDRsGVR)); err != nil {
		return nil, err
	}
	return r, nil
}

// Run applies the store's changes to the caches until ctx ends.
func (r *Registry) Run(ctx context.Context) error { return r.hub.Run(ctx) }

// CheckShared looks at every cached object for changes, if Config.Mutated is set.
func (r *Registry) CheckShared() { r.hub.CheckShared() }

// Unstored returns a resource of which no object exists: admission is asked about
// its requests as about others.
func Unstored(k *kind.Kind) *Resource { return newResource(k, nil) }

// Resource finds a served resource, or nil.
func (r *Registry) Resource(gvr schema.GroupVersionResource) *Resource {
	return r.served.Load().resources[gvr]
}

// Resources lists what is served: the built-in kinds in the order of their table,
// then the custom ones.
func (r *Registry) Resources() []*Resource { return r.served.Load().ordered }

// Revision is the newest revision that every cache has.
func (r *Registry) Revision() int64 { return r.hub.Revision() }

// Request says who wants what of which object.
type Request struct {
	User         *authenticationv1.UserInfo
	Resource     *Resource
	Namespace    string
	Name         string
	Subresource  string
	DryRun       bool
	FieldManager string
	Force        bool // server-side apply: take fields from other managers
	// Warn receives warnings for the client; nil drops them.
	Warn func(string)
	// Annotate receives annotations for the audit log; nil drops them.
	Annotate func(key, value string)

	applied  bool // server-side apply has set the managed fields already
	patched  bool // the object comes from the present one: it needs no resourceVersion
	admitted bool // admission has seen the body of a subresource, see Admit
}

func (q *Request) warn(text string) {
	if q.Warn != nil {
		q.Warn(text)
	}
}

// key is the object's key in the cache.
func (q *Request) key() string { return objectKey(q.Namespace, q.Name) }

func objectKey(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

func (q *Request) notFound() error {
	return apierrors.NewNotFound(q.Resource.GroupResource(), q.Name)
}

var errModified = errors.New("the object has been modified; please apply your changes to the latest version and try again")

func (q *Request) conflict(name string) error {
	return apierrors.NewConflict(q.Resource.GroupResource(), name, errModified)
}

// View converts a stored object to the version that a request asked for.
func (r *Resource) View(obj kind.Object) (kind.Object, error) {
	if r.hub == r {
		return obj, nil
	}
	v, err := r.FromHub(obj)
	if err != nil {
		return nil, err
	}
	codec.SetType(v, r.GVK())
	return v, nil
}

// Stored is the resource whose objects are stored: itself, or the one that it is a
// view on.
func (r *Resource) Stored() *Resource { return r.hub }

// StorageVersionHash is that of discovery: it changes with the version in which the
// resource's objects are stored from now on.
func (r *Resource) StorageVersionHash() string {
	if r.stored != nil {
		return kind.StorageVersionHash(r.stored.GVK())
	}
	return kind.StorageVersionHash(r.hub.GVK())
}

// IsView tells whether objects are stored in another version.
func (r *Resource) IsView() bool { return r.hub != r }

func (r *Resource) toHub(obj kind.Object) (kind.Object, error) {
	if r.hub == r {
		return obj, nil
	}
	h, err := r.ToHub(obj)
	if err != nil {
		return nil, err
	}
	codec.SetType(h, r.hub.GVK())
	return h, nil
}

func (r *Registry) decodeStored(k *kind.Kind, key string, value []byte) (kind.Object, error) {
	if k.SecretAtRest && r.cfg.Sealer != nil {
		var err error
		if value, err = r.cfg.Sealer.Open(key, value); err != nil {
			return nil, err
		}
	}
	if k.Custom != nil {
		return k.Custom.DecodeStored(value)
	}
	return codec.DecodeStored(k, value)
}

// put stores obj if the key still has the revision prev (0: none), together with
// the writes of also. On success the object belongs to the cache. A nil item
// without error means that a condition did not hold; errAddressTaken, that it was
// one of also and the key itself is still free.
func (r *Registry) put(ctx context.Context, res *Resource, key string, prev int64, obj kind.Object, also ...store.Write) (*watchcache.Item, error) {
	obj.SetResourceVersion("")
	obj, err := res.toStored(ctx, obj)
	if err != nil {
		return nil, err
	}
	value, err := codec.EncodeStored(res.Kind, obj)
	if err != nil {
		return nil, err
	}
	storeKey := watchcache.Key(res.Kind, key)
	if res.SecretAtRest && r.cfg.Sealer != nil {
		if value, err = r.cfg.Sealer.Seal(storeKey, value); err != nil {
			return nil, err
		}
	}
	p := r.hub.Expect(storeKey, value, obj)
	defer r.hub.Forget(p)
	w, err := r.cfg.Store.Write(ctx, store.Write{Key: storeKey, If: prev, Value: value, Also: also})
	if err != nil {
		return nil, storeError(err)
	}
	if !w.Done {
		if prev == 0 && w.Current == nil && len(also) > 0 {
			return nil, errAddressTaken
		}
		if w.Current != nil { // whoever is refused knows of it: reads from now on must, too
			if err := r.hub.Wait(ctx, w.Current.Revision); err != nil {
				return nil, storeError(err)
			}
		}
		return nil, nil
	}
	if err := r.hub.Wait(ctx, w.Revision); err != nil {
		return nil, storeError(err)
	}
	return res.item(ctx, r.hub.Result(p, key, w.Revision))
}

// remove deletes a key if it still has the revision prev, and with a service the
// objects of its addresses.
func (r *Registry) remove(ctx context.Context, res *Resource, key string, prev int64, obj kind.Object) (revision int64, done bool, err error) {
	also, err := r.services.beforeRemove(obj)
	if err != nil {
		return 0, false, apierrors.NewInternalError(err)
	}
	w, err := r.cfg.Store.Write(ctx, store.Write{Key: watchcache.Key(res.Kind, key), If: prev, Delete: true, Also: also})
	if err != nil {
		return 0, false, storeError(err)
	}
	if !w.Done {
		return 0, false, nil
	}
	return w.Revision, true, r.hub.Wait(ctx, w.Revision)
}

// latest returns an object's newest state: the cache's, or after a lost race
// the store's, waiting until the cache has caught up.
func (r *Registry) latest(ctx context.Context, res *Resource, key string, raced bool) (*watchcache.Item, error) {
	if raced || !r.cfg.SingleServer {
		rev, err := r.cfg.Store.Revision(ctx)
		if err != nil {
			return nil, storeError(err)
		}
		if err := r.hub.Wait(ctx, rev); err != nil {
			return nil, err
		}
	}
	return res.item(ctx, res.Cache.Get(key))
}

// storeError maps the store's failures to the API's.
func storeError(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0)
	case errors.Is(err, store.ErrClosed):
		return apierrors.NewServiceUnavailable("the store is closed: the server is shutting down")
	}
	return apierrors.NewInternalError(err)
}
