package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
)

// served is what the registry serves at one time; immutable, so that readers
// need no lock.
type served struct {
	resources  map[schema.GroupVersionResource]*Resource
	ordered    []*Resource
	generation int64
}

func newResource(k *kind.Kind, c *watchcache.Cache) *Resource {
	res := &Resource{Kind: k, Cache: c, managers: map[string]*managedfields.FieldManager{}}
	res.hub = res
	return res
}

// Served is Resources and the Generation to which they belong.
func (r *Registry) Served() ([]*Resource, int64) {
	s := r.served.Load()
	return s.ordered, s.generation
}

// Generation is raised whenever other resources are served than before.
func (r *Registry) Generation() int64 { return r.served.Load().generation }

// Serve begins to serve the versions of a custom kind, the preferred one first,
// or serves them differently. Their objects are stored as stored says, which need
// not be among versions. The stored objects are read before Serve returns.
func (r *Registry) Serve(ctx context.Context, stored *kind.Kind, versions []*kind.Kind) error {
	r.serving.Lock()
	defer r.serving.Unlock()
	err := r.hub.Attach(ctx, stored, func(cache *watchcache.Cache) {
		at := newResource(stored, cache)
		at.stored = at
		at.epoch = r.Generation() + 1
		var fresh []*Resource
		for i, k := range versions {
			res := at
			if k != stored {
				res = newResource(k, cache)
				res.stored, res.epoch = at, at.epoch
			}
			res.Primary = i == 0
			fresh = append(fresh, res)
		}
		r.replace(stored.Storage, fresh)
	})
	if err != nil {
		return fmt.Errorf("serve %s: %w", stored.GroupResource(), err)
	}
	return nil
}

// Withdraw ends the service of a custom kind.
func (r *Registry) Withdraw(stored *kind.Kind) {
	r.serving.Lock()
	defer r.serving.Unlock()
	r.replace(stored.Storage, nil)
	r.hub.Detach(stored)
}

// replace puts fresh in the place of the resources with a storage.
func (r *Registry) replace(storage string, fresh []*Resource) {
	old := r.served.Load()
	next := &served{generation: old.generation + 1, resources: maps.Clone(old.resources)}
	next.ordered = slices.DeleteFunc(slices.Clone(old.ordered), func(res *Resource) bool {
		if res.Storage != storage || res.Custom == nil {
			return false
		}
		delete(next.resources, res.GVR())
		return true
	})
	for _, res := range fresh {
		next.resources[res.GVR()] = res
		next.ordered = append(next.ordered, res)
	}
	r.served.Store(next)
}

// toStored converts an object to the version that is stored.
func (r *Resource) toStored(ctx context.Context, obj kind.Object) (kind.Object, error) {
	if r.stored == nil {
		return obj, nil
	}
	out, err := r.stored.Custom.Convert(ctx, []kind.Object{obj})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// outdated tells whether an object is stored in another version than it would be
// now: then a write that changes nothing stores it anew, so that the definition can
// cease to list the former version.
func (r *Registry) outdated(ctx context.Context, res *Resource, it *watchcache.Item) (bool, error) {
	if res.stored == nil || !res.stored.Custom.MayBeOutdated() {
		return false, nil
	}
	kv, err := r.cfg.Store.Get(ctx, watchcache.Key(res.Kind, it.Key))
	if err != nil {
		return false, storeError(err)
	}
	return kv != nil && res.stored.Custom.Outdated(kv.Value), nil
}

// item shows a stored object in the resource's version.
func (r *Resource) item(ctx context.Context, it *watchcache.Item) (*watchcache.Item, error) {
	if r.stored == nil || it == nil {
		return it, nil
	}
	one := [1]*watchcache.Item{it}
	out, err := r.Items(ctx, one[:])
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// Items shows stored objects in the resource's version, each converted once.
// items is not changed.
func (r *Resource) Items(ctx context.Context, items []*watchcache.Item) ([]*watchcache.Item, error) {
	if r.stored == nil {
		return items, nil
	}
	var (
		out  []*watchcache.Item
		todo []int
		objs []kind.Object
	)
	for i, it := range items {
		if it.Object.GetObjectKind().GroupVersionKind().Version == r.Version {
			continue
		}
		if out == nil {
			out = slices.Clone(items)
		}
		if out[i] = it.As(r.Version); out[i] == nil {
			todo, objs = append(todo, i), append(objs, it.Object)
		}
	}
	if out == nil {
		return items, nil
	}
	if len(todo) == 0 {
		return out, nil
	}
	converted, err := r.Custom.Convert(ctx, objs)
	if err != nil {
		return nil, err
	}
	for n, i := range todo {
		out[i] = items[i].KeepAs(r.Version, converted[n])
	}
	return out, nil
}

// contentChanged compares all but metadata and, if it is apart, status.
func contentChanged(a, b kind.Object, statusApart bool) bool {
	x, ok1 := a.(*unstructured.Unstructured)
	y, ok2 := b.(*unstructured.Unstructured)
	if !ok1 || !ok2 {
		return true
	}
	skip := func(key string) bool {
		return key == "metadata" || key == "apiVersion" || key == "kind" || statusApart && key == "status"
	}
	for key, v := range x.Object {
		if !skip(key) && !check.Same(v, y.Object[key]) {
			return true
		}
	}
	for key := range y.Object {
		if _, ok := x.Object[key]; !ok && !skip(key) {
			return true
		}
	}
	return false
}

// decodePatchedCustom reads a patched custom object.
func decodePatchedCustom(q *Request, after []byte, validation string) (kind.Object, error) {
	obj, faults, err := q.Resource.Custom.Decode(after, validation != metav1.FieldValidationIgnore)
	return patchedCustom(q, obj, faults, err, validation)
}

// patchedCustom judges what came of a patch.
func patchedCustom(q *Request, obj kind.Object, faults []error, err error, validation string) (kind.Object, error) {
	gvk := q.Resource.GVK()
	if err != nil {
		return nil, apierrors.NewInvalid(gvk.GroupKind(), q.Name, field.ErrorList{field.Invalid(field.NewPath("patch"), "", err.Error())})
	}
	if len(faults) > 0 && validation == metav1.FieldValidationStrict {
		return nil, apierrors.NewInvalid(gvk.GroupKind(), q.Name, field.ErrorList{
			field.Invalid(field.NewPath("patch"), "", runtime.NewStrictDecodingError(faults).Error())})
	}
	for _, f := range faults {
		q.warn(f.Error())
	}
	if actual := obj.GetObjectKind().GroupVersionKind(); actual != gvk {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", actual, gvk))
	}
	return obj, nil
}

// mergeCustom applies a merge patch to a copy of a custom object, which needs no
// encoding: it is made of maps already.
func mergeCustom(q *Request, old kind.Object, p Patch) (kind.Object, error) {
	u, ok := old.(*unstructured.Unstructured)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("a custom object is a %T", old))
	}
	strict := p.Validation != metav1.FieldValidationIgnore
	var patch map[string]any
	var twice []error
	var err error
	if strict {
		twice, err = kjson.UnmarshalStrict(p.Data, &patch, kjson.DisallowDuplicateFields)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(p.Data, &patch)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	obj := u.DeepCopy()
	mergeMaps(obj.Object, patch)
	faults, err := q.Resource.Custom.Form(obj, strict)
	return patchedCustom(q, obj, append(twice, faults...), err, p.Validation)
}

// mergeMaps is RFC 7396.
func mergeMaps(target, patch map[string]any) {
	for k, v := range patch {
		if v == nil {
			delete(target, k)
			continue
		}
		change, ok := v.(map[string]any)
		if !ok {
			target[k] = v
			continue
		}
		inner, ok := target[k].(map[string]any)
		if !ok {
			inner = make(map[string]any, len(change))
			target[k] = inner
		}
		mergeMaps(inner, change)
	}
}

// checkAppliedCustom finds what an apply configuration says twice; what its
// schema does not know, the merge refuses.
func checkAppliedCustom(q *Request, p Patch) error {
	if p.Validation == metav1.FieldValidationIgnore {
		return nil
	}
	if json.Valid(p.Data) {
		// Much cheaper than as YAML, whose words the answer needs only for a fault.
		if twice, err := kjson.UnmarshalStrict(p.Data, &map[string]any{}, kjson.DisallowDuplicateFields); err == nil && len(twice) == 0 {
			return nil
		}
	}
	err := yaml.UnmarshalStrict(p.Data, &map[string]any{})
	switch {
	case err == nil:
	case p.Validation == metav1.FieldValidationStrict:
		return apierrors.NewBadRequest(fmt.Sprintf("error strict decoding YAML: %v", err))
	default:
		q.warn(err.Error())
	}
	return nil
}
