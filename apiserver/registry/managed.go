package registry

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/openapi"
)

// manager returns the field manager of a resource's subresource.
func (r *Registry) manager(res *Resource, subresource string) (*managedfields.FieldManager, error) {
	res.mu.Lock()
	defer res.mu.Unlock()
	if m := res.managers[subresource]; m != nil {
		return m, nil
	}
	t, err := r.managed(res)
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", res.Resource, err)
	}
	m, err := managedfields.NewDefaultFieldManager(t.Types, t.Convertor, defaulter{res}, t.Creater,
		res.GVK(), res.GVK().GroupVersion(), subresource, resetFields(res, subresource))
	if err != nil {
		return nil, fmt.Errorf("field manager of %s: %w", res.Resource, err)
	}
	res.managers[subresource] = m
	return m, nil
}

// managed returns what the field managers of a kind are made of.
func (r *Registry) managed(res *Resource) (kind.Managed, error) {
	if res.Managed != nil {
		return res.Managed()
	}
	if !scheme.Scheme.Recognizes(res.GVK()) {
		types, err := managedfields.NewTypeConverter(openapi.Models(res.Kind), false)
		return kind.Managed{Types: types, Convertor: single{res.New}, Creater: single{res.New}}, err
	}
	r.Prepare()
	return kind.Managed{Types: r.converter, Convertor: scheme.Scheme, Creater: scheme.Scheme}, nil
}

// Prepare does in advance what the first write that names a manager would wait for,
// a tenth of a second: the schema of every built-in type is parsed. No start should
// wait for it either.
func (r *Registry) Prepare() {
	r.converterOnce.Do(func() { r.converter = applyconfigurations.NewTypeConverter(scheme.Scheme) })
}

// single knows one kind in one version.
type single struct{ make func() kind.Object }

// New implements runtime.ObjectCreater.
func (s single) New(schema.GroupVersionKind) (runtime.Object, error) { return s.make(), nil }

// Convert implements runtime.ObjectConvertor; nobody asks for it.
func (single) Convert(in, out, _ any) error {
	return fmt.Errorf("convert a %T to a %T: there is one version", in, out)
}

// ConvertToVersion implements runtime.ObjectConvertor.
func (single) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}

// ConvertFieldLabel implements runtime.ObjectConvertor; nobody asks for it.
func (single) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// resetFields names what a write to this endpoint cannot change, so that nobody
// comes to own it there.
func resetFields(res *Resource, subresource string) map[fieldpath.APIVersion]fieldpath.Filter {
	var set *fieldpath.Set
	switch {
	case !res.HasStatus:
		return nil
	case subresource == "":
		set = fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
	case subresource == "status":
		set = fieldpath.NewSet(fieldpath.MakePathOrDie("spec"))
		if res.GVR() == deploymentsGVR {
			set.Insert(fieldpath.MakePathOrDie("metadata", "labels"))
		}
	default:
		return nil
	}
	return map[fieldpath.APIVersion]fieldpath.Filter{
		fieldpath.APIVersion(res.GVK().GroupVersion().String()): fieldpath.NewExcludeSetFilter(set),
	}
}

type defaulter struct{ res *Resource }

func (d defaulter) Default(in runtime.Object) {
	if obj, ok := in.(kind.Object); ok && d.res.Default != nil {
		d.res.Default(obj)
	}
}

// manage records in *obj which manager set which field since old. Writes
// without a manager (knarr's own components, whose writes nobody applies over)
// keep the records of others untouched.
func (r *Registry) manage(q *Request, old kind.Object, obj *kind.Object) error {
	if q.FieldManager == "" || q.applied {
		return nil
	}
	// The entries that the manager starts from: those sent, if any (see returned).
	present, sent := owned(old), owned(*obj)
	before := present
	if sent != nil && q.Subresource == "" {
		before = sent
	}
	key, known := ownershipKey(q, old, *obj, present, sent)
	if known {
		if o, ok := r.ownerships.find(key); ok {
			o.own(*obj, before, r.cfg.Now())
			return nil
		}
	}
	m, err := r.manager(q.Resource.hub, q.Subresource)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	out := m.UpdateNoErrors(old, *obj, q.FieldManager)
	*obj = out.(kind.Object)
	if known {
		if o, ok := ownershipOf(q, before, *obj); ok {
			r.ownerships.keep(key, o)
		}
	}
	return nil
}

// apply merges an apply configuration into live (nil: the object is new).
func (r *Registry) apply(q *Request, live kind.Object, config runtime.Object) (kind.Object, error) {
	m, err := r.manager(q.Resource.hub, q.Subresource)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	out, err := m.Apply(live, config, q.FieldManager, q.Force)
	if err != nil {
		if _, ok := err.(apierrors.APIStatus); !ok { // such as a configuration that is not of the kind's shape
			err = apierrors.NewBadRequest(err.Error())
		}
		return nil, err
	}
	obj, ok := out.(kind.Object)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("apply made a %T", out))
	}
	return obj, nil
}

// sameManagedFields compares managed fields without their times.
func sameManagedFields(a, b []metav1.ManagedFieldsEntry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if x.Manager != y.Manager || x.Operation != y.Operation || x.APIVersion != y.APIVersion || x.Subresource != y.Subresource || !equalFields(x.FieldsV1, y.FieldsV1) {
			return false
		}
	}
	return true
}

func equalFields(a, b *metav1.FieldsV1) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a == b || string(a.Raw) == string(b.Raw)
}

var servicesGVR = schema.GroupVersionResource{Version: "v1", Resource: "services"}
