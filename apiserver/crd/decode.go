package crd

import (
	"fmt"

	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "sigs.k8s.io/json"

	"knarr.dev/knarr/api/kind"
)

// Decode implements kind.Custom.
func (v *version) Decode(data []byte, strict bool) (kind.Object, []error, error) {
	obj := map[string]any{}
	var faults []error
	var err error
	if strict {
		faults, err = kjson.UnmarshalStrict(data, &obj, kjson.DisallowDuplicateFields)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, &obj)
	}
	if err != nil {
		return nil, nil, err
	}
	if obj == nil {
		obj = map[string]any{}
	}
	u := &unstructured.Unstructured{Object: obj}
	if u.GetAPIVersion() == "" {
		u.SetAPIVersion(v.gvk.GroupVersion().String())
	}
	if u.GetKind() == "" {
		u.SetKind(v.gvk.Kind)
	}
	unknown, err := v.Form(u, strict)
	if err != nil {
		return nil, nil, err
	}
	return u, append(faults, unknown...), nil
}

// Form implements kind.Custom.
func (v *version) Form(obj kind.Object, strict bool) (faults []error, err error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("have a %T", obj)
	}
	unknown, err := v.coerce(u.Object, strict)
	if err != nil {
		return nil, err
	}
	for _, path := range unknown {
		faults = append(faults, fmt.Errorf("unknown field %q", path))
	}
	return faults, nil
}

// coerce brings an object into the declared form: fields that are not declared
// are dropped (and returned, if track), metadata gets its types, defaults are
// filled.
func (v *version) coerce(obj map[string]any, track bool) (unknown []string, err error) {
	s, err := v.structure()
	if err != nil {
		return nil, err
	}
	var meta *metav1.ObjectMeta
	odd := obj["metadata"] != nil && !plainMeta(obj["metadata"])
	if odd {
		if meta, _, unknown, err = objectmeta.GetObjectMetaWithOptions(obj, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: track}); err != nil {
			return nil, err
		}
	}
	if v.prunes() {
		unknown = append(unknown, pruning.PruneWithOptions(obj, s, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: track})...)
	}
	fieldErr, embedded := objectmeta.CoerceWithOptions(nil, obj, s, false, objectmeta.CoerceOptions{ReturnUnknownFieldPaths: track})
	if fieldErr != nil {
		return nil, fieldErr
	}
	unknown = append(unknown, embedded...)
	if odd {
		if err := objectmeta.SetObjectMeta(obj, meta); err != nil {
			return nil, err
		}
	}
	v.fill(obj)
	return unknown, nil
}

// prunes tells whether undeclared fields are dropped: not for definitions from
// before v1 that keep all.
func (v *version) prunes() bool { return !v.def.crd.Spec.PreserveUnknownFields }

// fill sets the declared defaults.
func (v *version) fill(obj map[string]any) {
	if s, err := v.structure(); err == nil && s != nil {
		if v.prunes() {
			defaulting.PruneNonNullableNullsWithoutDefaults(obj, s)
		}
		defaulting.Default(obj, s)
	}
}

// shape prunes and defaults an object that has come from another version or an
// older schema.
func (v *version) shape(obj map[string]any) {
	if s, err := v.structure(); err == nil && v.prunes() {
		pruning.Prune(obj, s, true)
	}
	v.fill(obj)
}

// MayBeOutdated implements kind.Custom: only a definition that has had several
// storage versions has objects in several.
func (v *version) MayBeOutdated() bool { return len(v.def.crd.Status.StoredVersions) > 1 }

// Outdated implements kind.Custom.
func (v *version) Outdated(data []byte) bool {
	var stored metav1.TypeMeta
	return kjson.UnmarshalCaseSensitivePreserveInts(data, &stored) == nil && stored.APIVersion != v.def.storage.gvk.GroupVersion().String()
}

// DecodeStored implements kind.Custom. Objects of another version are kept as
// they are if only a webhook can convert them.
func (v *version) DecodeStored(data []byte) (kind.Object, error) {
	obj := map[string]any{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &obj); err != nil {
		return nil, fmt.Errorf("decode a stored %s: %w", v.gvk.Kind, err)
	}
	u := &unstructured.Unstructured{Object: obj}
	u.SetKind(v.gvk.Kind)
	if u.GroupVersionKind().GroupVersion() != v.gvk.GroupVersion() {
		if v.def.hooked() {
			return u, nil
		}
		u.SetAPIVersion(v.gvk.GroupVersion().String())
	}
	v.shape(obj)
	return u, nil
}
