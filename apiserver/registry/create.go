package registry

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Names made from generateName: the base is cut to maxGeneratedBase and five
// random characters follow; a clash is tried again.
const (
	randomSuffix     = 5
	maxGeneratedBase = 63 - randomSuffix
	generateAttempts = 8
)

// Create stores a new object, which the registry owns from here on.
func (r *Registry) Create(ctx context.Context, q Request, obj kind.Object) (*watchcache.Item, error) {
	if err := checkNamespace(&q, obj); err != nil {
		return nil, err
	}
	if q.Name != "" && obj.GetName() == "" {
		obj.SetName(q.Name)
	}
	obj, err := q.Resource.toHub(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	generate := obj.GetName() == "" && obj.GetGenerateName() != ""
	for attempt := 1; ; attempt++ {
		next := obj
		if generate {
			next = obj.DeepCopyObject().(kind.Object)
			base := next.GetGenerateName()
			next.SetName(base[:min(len(base), maxGeneratedBase)] + utilrand.String(randomSuffix))
		}
		it, err := r.create(ctx, &q, next)
		if generate && apierrors.IsAlreadyExists(err) && attempt < generateAttempts {
			continue
		}
		return it, err
	}
}

func checkNamespace(q *Request, obj kind.Object) error {
	if !q.Resource.Namespaced {
		obj.SetNamespace("")
		return nil
	}
	if err := sameNamespace(q, obj.GetNamespace()); err != nil {
		return err
	}
	obj.SetNamespace(q.Namespace)
	return nil
}

// sameNamespace refuses a body whose namespace, if it has one, is not the request's.
func sameNamespace(q *Request, ns string) error {
	if ns != "" && ns != q.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

func (r *Registry) create(ctx context.Context, q *Request, obj kind.Object) (*watchcache.Item, error) {
	res := q.Resource.hub
	if obj.GetName() != "" {
		q.Name = obj.GetName()
	}
	if res.Custom != nil {
		if err := res.Custom.Refuses(); err != nil {
			return nil, err
		}
	}
	if obj.GetResourceVersion() != "" && obj.GetResourceVersion() != "0" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	codec.SetType(obj, res.GVK())
	r.default_(res, obj)
	// Before admission and allocation: a client owns what it sent, no more.
	if err := r.manage(q, res.New(), &obj); err != nil {
		return nil, err
	}
	attrs := r.attributes(q, Create, obj, nil)
	if err := r.mutate(ctx, attrs); err != nil {
		return nil, err
	}
	obj = attrs.Object
	obj.SetUID(uuid.NewUUID())
	obj.SetCreationTimestamp(metav1.NewTime(r.cfg.Now()).Rfc3339Copy())
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	dedupOwners(q, obj)
	obj.SetGeneration(0)
	if !res.NoGeneration {
		obj.SetGeneration(1)
	}
	if res.PrepareCreate != nil {
		res.PrepareCreate(obj)
	} else if res.HasStatus {
		kind.CopyStatus(obj, res.New())
	}
	r.default_(res, obj)
	if res.Canonicalize != nil {
		res.Canonicalize(obj)
	}
	held, err := r.services.beforeCreate(res, obj)
	if err != nil {
		return nil, err
	}
	defer held.release()
	if errs := r.validateNew(ctx, res, obj); len(errs) > 0 {
		return nil, apierrors.NewInvalid(res.GVK().GroupKind(), obj.GetName(), errs)
	}
	if err := r.validate(ctx, attrs); err != nil {
		return nil, err
	}
	key := objectKey(obj.GetNamespace(), obj.GetName())
	if q.DryRun {
		if res.Cache.Get(key) != nil {
			return nil, apierrors.NewAlreadyExists(res.GroupResource(), obj.GetName())
		}
		return dryRunItem(key, obj, 0), nil
	}
	it, err := r.putNew(ctx, res, key, obj, held)
	if err != nil {
		return nil, err
	}
	if it == nil {
		return nil, apierrors.NewAlreadyExists(q.Resource.GroupResource(), obj.GetName())
	}
	return it, nil
}

func dryRunItem(key string, obj kind.Object, revision int64) *watchcache.Item {
	it := watchcache.NewItem(key, obj, revision)
	if revision == 0 {
		obj.SetResourceVersion("")
	}
	return it
}

func (r *Registry) default_(res *Resource, obj kind.Object) {
	if res.Default != nil {
		res.Default(obj)
	}
}

var (
	metadataPath   = field.NewPath("metadata")
	finalizersPath = metadataPath.Child("finalizers")
)

func (r *Registry) validateNew(ctx context.Context, res *Resource, obj kind.Object) field.ErrorList {
	errs := validation.ValidateObjectMetaAccessor(obj, res.Namespaced, res.validName, metadataPath)
	if res.Custom == nil {
		errs = append(errs, check.Finalizers(finalizersPath, obj.GetFinalizers())...)
	}
	switch {
	case res.Check != nil:
		errs = append(errs, res.Check(ctx, obj, nil, "")...)
	case res.Validate != nil:
		errs = append(errs, res.Validate(obj)...)
	}
	return errs
}

// validName checks a name, or with prefix the beginning of one.
func (r *Resource) validName(name string, prefix bool) []string {
	if r.ValidName != nil {
		return r.ValidName(name, prefix)
	}
	return validation.NameIsDNSSubdomain(name, prefix)
}

func nameMismatch(obj, url string) error {
	return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj, url))
}
