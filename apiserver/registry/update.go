package registry

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
)

// transform makes the wanted object from the present one, which it must not
// change. It is called again when another writer was faster.
type transform func(old kind.Object) (kind.Object, error)

// Races that an update without a resourceVersion may lose before it gives up.
const maxRaces = 16

// Update replaces an object, or its status. created tells that the object was
// absent and has been made.
func (r *Registry) Update(ctx context.Context, q Request, obj kind.Object) (it *watchcache.Item, created bool, err error) {
	if err := checkNamespace(&q, obj); err != nil {
		return nil, false, err
	}
	if obj.GetName() != "" && obj.GetName() != q.Name {
		return nil, false, nameMismatch(obj.GetName(), q.Name)
	}
	if obj.GetName() == "" {
		return nil, false, apierrors.NewBadRequest("name must be provided")
	}
	hub, err := q.Resource.toHub(obj)
	if err != nil {
		return nil, false, apierrors.NewBadRequest(err.Error())
	}
	if q.Resource.hub.AllowCreateOnUpdate && q.Subresource == "" && q.Resource.Cache.Get(q.key()) == nil {
		if obj.GetResourceVersion() == "" {
			it, err = r.create(ctx, &q, hub)
			return it, true, err
		}
	}
	it, err = r.modify(ctx, &q, func(kind.Object) (kind.Object, error) {
		return hub.DeepCopyObject().(kind.Object), nil
	})
	return it, false, err
}

// modify is the one way in which stored objects change.
func (r *Registry) modify(ctx context.Context, q *Request, fn transform) (*watchcache.Item, error) {
	return r.modifyItem(ctx, q, func(old *watchcache.Item) (kind.Object, error) { return fn(old.Object) })
}

// modifyItem is modify for transforms that can use the stored object's bytes.
func (r *Registry) modifyItem(ctx context.Context, q *Request, fn func(*watchcache.Item) (kind.Object, error)) (*watchcache.Item, error) {
	res := q.Resource.hub
	for race := 0; ; race++ {
		it, err := r.latest(ctx, res, q.key(), race > 0)
		if err != nil {
			return nil, err
		}
		if it == nil {
			return nil, q.notFound()
		}
		obj, err := fn(it)
		if err != nil {
			return nil, err
		}
		out, err := r.modifyOnce(ctx, q, it, obj)
		if out != nil || err != nil {
			return out, err
		}
		// Another try tells a writer who named a revision whether the object has
		// changed or is gone.
		if race == maxRaces {
			return nil, q.conflict(q.Name)
		}
	}
}

// modifyOnce tries to replace it by obj; nil, nil means that another writer was
// faster.
func (r *Registry) modifyOnce(ctx context.Context, q *Request, it *watchcache.Item, obj kind.Object) (*watchcache.Item, error) {
	res, old := q.Resource.hub, it.Object
	codec.SetType(obj, res.GVK())
	// A patch names an identity as a field that changes, which validation refuses.
	if uid := obj.GetUID(); uid != "" && uid != old.GetUID() && (!q.patched || q.applied) {
		return nil, apierrors.NewConflict(res.GroupResource(), q.Name,
			fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", uid, old.GetUID()))
	}
	switch rv := obj.GetResourceVersion(); {
	case rv != "" && rv != "0" && rv != old.GetResourceVersion():
		return nil, q.conflict(q.Name)
	case rv == "" && res.RequireResourceVersion && !q.patched:
		return nil, apierrors.NewInvalid(res.GVK().GroupKind(), q.Name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "resourceVersion"), rv, "must be specified for an update")})
	}
	r.default_(res, obj)
	if err := r.manage(q, old, &obj); err != nil {
		return nil, err
	}
	r.prepareUpdate(q, obj, old)
	r.default_(res, obj)
	attrs := r.attributes(q, Update, obj, old)
	if err := r.mutate(ctx, attrs); err != nil {
		return nil, err
	}
	if obj = attrs.Object; attrs.replaced {
		r.prepareUpdate(q, obj, old)
		r.default_(res, obj)
	}
	if res.Canonicalize != nil {
		res.Canonicalize(obj)
	}
	held, err := r.services.beforeUpdate(res, q.Subresource, obj, old)
	if err != nil {
		return nil, err
	}
	defer held.release()
	setGeneration(res, q.Subresource, obj, old)
	if errs := r.validateChange(ctx, q, obj, old); len(errs) > 0 {
		return nil, apierrors.NewInvalid(res.GVK().GroupKind(), q.Name, errs)
	}
	if err := r.validate(ctx, attrs); err != nil {
		return nil, err
	}
	if unchanged(obj, old) {
		if outdated, err := r.outdated(ctx, res, it); err != nil || !outdated || q.DryRun {
			return it, err
		}
	}
	if q.DryRun {
		return dryRunItem(it.Key, obj, it.Revision), nil
	}
	if finished(obj) && !finished(old) {
		rev, done, err := r.remove(ctx, res, it.Key, it.Revision, old)
		if err != nil || !done {
			return nil, err
		}
		return watchcache.NewItem(it.Key, obj, rev), nil
	}
	return r.put(ctx, res, it.Key, it.Revision, obj, held.also...)
}

// prepareUpdate carries over what this endpoint may not change.
func (r *Registry) prepareUpdate(q *Request, obj, old kind.Object) {
	res := q.Resource.hub
	switch q.Subresource {
	case "status":
		if res.PrepareStatus != nil {
			res.PrepareStatus(obj, old)
			break
		}
		kind.KeepAllButStatus(obj, old)
		if res.GVR() == deploymentsGVR {
			obj.SetLabels(old.GetLabels())
		}
	case "":
		if res.PrepareUpdate != nil {
			res.PrepareUpdate(obj, old)
		} else if res.HasStatus {
			kind.CopyStatus(obj, old.DeepCopyObject().(kind.Object))
		}
	default:
		if part := res.Part(q.Subresource); part != nil {
			part.Prepare(obj, old)
		}
	}
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	obj.SetName(old.GetName())
	obj.SetNamespace(old.GetNamespace())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	if obj.GetDeletionTimestamp() == nil {
		obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	}
	if obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	}
	dedupOwners(q, obj)
	if q.FieldManager == "" && !q.applied {
		obj.SetManagedFields(old.GetManagedFields())
	}
	obj.SetSelfLink("")
	if pv, ok := obj.(*corev1.PersistentVolume); ok && pv.Status.Phase != old.(*corev1.PersistentVolume).Status.Phase {
		now := metav1.NewTime(r.cfg.Now()).Rfc3339Copy()
		pv.Status.LastPhaseTransitionTime = &now
	}
}

// dedupOwners drops owners that are named twice, with a warning.
func dedupOwners(q *Request, obj kind.Object) {
	owners := obj.GetOwnerReferences()
	if len(owners) < 2 {
		return
	}
	var kept []metav1.OwnerReference
	for _, o := range owners {
		if slices.ContainsFunc(kept, func(k metav1.OwnerReference) bool { return check.Same(k, o) }) {
			q.warn(fmt.Sprintf(".metadata.ownerReferences names the owner with the UID %s twice; it is kept once", o.UID))
			continue
		}
		kept = append(kept, o)
	}
	if len(kept) < len(owners) {
		obj.SetOwnerReferences(kept)
	}
}

// deploymentsGVR alone keeps its labels from writers of the status.
var deploymentsGVR = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}

// setGeneration raises metadata.generation when the desired state changed. Where
// a pod runs is not desired by its author.
func setGeneration(res *Resource, subresource string, obj, old kind.Object) {
	gen := old.GetGeneration()
	if (!res.NoGeneration || res.LateGeneration) && !res.FixedGeneration && subresource != "status" && subresource != "binding" && desiredChanged(res, obj, old) {
		gen++
	}
	obj.SetGeneration(gen)
}

// desiredChanged compares all but metadata and status.
func desiredChanged(res *Resource, a, b kind.Object) bool {
	if res.Custom != nil {
		return contentChanged(a, b, res.HasStatus)
	}
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	if x.Kind() != reflect.Struct || x.Type() != y.Type() {
		return true
	}
	for i := range x.NumField() {
		switch x.Type().Field(i).Name {
		case "TypeMeta", "ObjectMeta", "Status":
			continue
		}
		if !check.Same(x.Field(i).Interface(), y.Field(i).Interface()) {
			return true
		}
	}
	return false
}

// unchanged tells whether writing obj over old would change nothing.
func unchanged(obj, old kind.Object) bool {
	mine, theirs := owned(obj), owned(old)
	if !sameManagedFields(mine, theirs) {
		return false
	}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return customUnchanged(u.Object, old.(*unstructured.Unstructured).Object)
	}
	rv := obj.GetResourceVersion()
	obj.SetManagedFields(theirs)
	obj.SetResourceVersion(old.GetResourceVersion())
	same := check.Same(obj, old)
	obj.SetManagedFields(mine)
	obj.SetResourceVersion(rv)
	return same
}

// finished tells whether nothing holds a deleted object back any more.
func finished(obj kind.Object) bool {
	if obj.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 || holds(obj) {
		return false
	}
	grace := obj.GetDeletionGracePeriodSeconds()
	return grace == nil || *grace == 0
}

func (r *Registry) validateChange(ctx context.Context, q *Request, obj, old kind.Object) field.ErrorList {
	res := q.Resource.hub
	newMeta, oldMeta := metaOf(obj), metaOf(old)
	oldVersion := newMeta.ResourceVersion
	if newMeta.ResourceVersion == "" {
		newMeta.ResourceVersion = oldMeta.ResourceVersion
	}
	errs := validation.ValidateObjectMetaUpdate(newMeta, oldMeta, metadataPath)
	newMeta.ResourceVersion = oldVersion
	errs = append(errs, checkNewNames(res, newMeta, oldMeta)...)
	switch {
	case res.Check != nil:
		errs = append(errs, res.Check(ctx, obj, old, q.Subresource)...)
	case q.Subresource == "status":
		if res.ValidateStatus != nil {
			errs = append(errs, res.ValidateStatus(obj, old)...)
		}
	case res.Part(q.Subresource) != nil:
		if part := res.Part(q.Subresource); part.Validate != nil {
			errs = append(errs, part.Validate(obj, old)...)
		}
	case q.Subresource == "finalize":
		for i, f := range obj.(*corev1.Namespace).Spec.Finalizers {
			errs = append(errs, check.Finalizer(field.NewPath("spec", "finalizers").Index(i), string(f))...)
		}
	case q.Subresource != "" && q.Subresource != "scale":
	case res.ValidateUpdate != nil:
		errs = append(errs, res.ValidateUpdate(obj, old)...)
	case res.Validate != nil:
		errs = append(errs, res.Validate(obj)...)
	}
	if view := q.Resource; view.ValidateViaView != nil {
		errs = append(errs, view.ValidateViaView(obj, old)...)
	}
	return errs
}

// checkNewNames checks what else a new object's metadata is checked for, where it
// has changed.
func checkNewNames(res *Resource, obj, old *metav1.ObjectMeta) field.ErrorList {
	var errs field.ErrorList
	at := metadataPath
	if obj.GenerateName != old.GenerateName && obj.GenerateName != "" {
		for _, msg := range res.validName(obj.GenerateName, true) {
			errs = append(errs, field.Invalid(at.Child("generateName"), obj.GenerateName, msg))
		}
	}
	if !slices.Equal(obj.Finalizers, old.Finalizers) {
		errs = append(errs, validation.ValidateFinalizers(obj.Finalizers, at.Child("finalizers"))...)
		if res.Custom == nil {
			errs = append(errs, check.Finalizers(at.Child("finalizers"), obj.Finalizers)...)
		}
	}
	return errs
}

// metaOf returns the ObjectMeta of a typed object, or a copy of an unstructured
// one's.
func metaOf(obj kind.Object) *metav1.ObjectMeta {
	if a, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if m, ok := a.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return m
		}
	}
	return &metav1.ObjectMeta{
		Name: obj.GetName(), GenerateName: obj.GetGenerateName(), Namespace: obj.GetNamespace(),
		UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(), Generation: obj.GetGeneration(),
		CreationTimestamp: obj.GetCreationTimestamp(), DeletionTimestamp: obj.GetDeletionTimestamp(),
		DeletionGracePeriodSeconds: obj.GetDeletionGracePeriodSeconds(), Labels: obj.GetLabels(), Annotations: obj.GetAnnotations(),
		OwnerReferences: obj.GetOwnerReferences(), Finalizers: obj.GetFinalizers(), ManagedFields: owned(obj),
	}
}
