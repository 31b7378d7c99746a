package crd

import (
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"knarr.dev/knarr/api/kind"
)

func rawExtension(b []byte) runtime.RawExtension { return runtime.RawExtension{Raw: b} }

// split returns the fields of a simple path such as .spec.replicas.
func split(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

// declare makes the kind of a version.
func (v *version) declare() *kind.Kind {
	names := v.def.crd.Status.AcceptedNames
	k := &kind.Kind{
		Group: v.gvk.Group, Version: v.gvk.Version, Kind: v.gvk.Kind, ListKind: names.ListKind,
		Resource: names.Plural, Singular: names.Singular, ShortNames: names.ShortNames, Categories: names.Categories,
		Namespaced: v.def.crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		Storage:    v.gvk.Group + "/" + names.Plural,
		New:        v.empty,
		Default:    func(o kind.Object) { v.fill(o.(*unstructured.Unstructured).Object) },
		Check:      v.check,
		Custom:     v,
		Managed:    v.managed,
		Schema:     v.describe,
	}
	if v.spec.Deprecated {
		k.Deprecated = fmt.Sprintf("%s/%s %s is deprecated", v.gvk.Group, v.gvk.Version, v.gvk.Kind)
		if v.spec.DeprecationWarning != nil {
			k.Deprecated = *v.spec.DeprecationWarning
		}
	}
	if s := v.spec.Subresources; s != nil {
		if s.Status != nil {
			k.HasStatus = true
			k.PrepareCreate = func(o kind.Object) { delete(o.(*unstructured.Unstructured).Object, "status") }
			k.PrepareUpdate = keepStatus
			k.PrepareStatus = onlyStatus
		}
		if s.Scale != nil {
			k.Scale = scaleOf(s.Scale)
		}
	}
	if len(v.spec.SelectableFields) > 0 {
		k.Fields = v.selectable
	}
	t := &printer{columns: v.spec.AdditionalPrinterColumns}
	k.Columns, k.Row = t.definitions(), t.row
	return k
}

func (v *version) empty() kind.Object {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(v.gvk)
	return u
}

// keepStatus has an update leave the status as it is.
func keepStatus(obj, old kind.Object) {
	to, from := obj.(*unstructured.Unstructured).Object, old.(*unstructured.Unstructured).Object
	if status, ok := from["status"]; ok {
		to["status"] = runtime.DeepCopyJSONValue(status)
	} else {
		delete(to, "status")
	}
}

// onlyStatus has an update of the status leave all else as it is.
func onlyStatus(obj, old kind.Object) {
	u := obj.(*unstructured.Unstructured)
	status, ok := u.Object["status"]
	managed, has, _ := unstructured.NestedFieldNoCopy(u.Object, "metadata", "managedFields")
	revision := u.GetResourceVersion()
	u.Object = old.DeepCopyObject().(*unstructured.Unstructured).Object
	if meta, is := u.Object["metadata"].(map[string]any); is && has {
		meta["managedFields"] = managed
	} else if is {
		delete(meta, "managedFields")
	}
	u.SetResourceVersion(revision)
	if ok {
		u.Object["status"] = status
	} else {
		delete(u.Object, "status")
	}
}

func scaleOf(s *apiextensionsv1.CustomResourceSubresourceScale) *kind.Scale {
	number := func(path string) func(kind.Object) int32 {
		at := split(path)
		return func(o kind.Object) int32 {
			n, _, err := unstructured.NestedInt64(o.(*unstructured.Unstructured).Object, at...)
			if err != nil {
				return 0
			}
			return int32(n)
		}
	}
	out := &kind.Scale{
		Replicas: number(s.SpecReplicasPath), StatusReplicas: number(s.StatusReplicasPath),
		SetReplicas: func(o kind.Object, n int32) {
			// Fails only where the parent is no object, which the validation refuses.
			_ = unstructured.SetNestedField(o.(*unstructured.Unstructured).Object, int64(n), split(s.SpecReplicasPath)...)
		},
	}
	if s.LabelSelectorPath != nil && *s.LabelSelectorPath != "" {
		at := split(*s.LabelSelectorPath)
		out.Selector = func(o kind.Object) string {
			text, _, err := unstructured.NestedString(o.(*unstructured.Unstructured).Object, at...)
			if err != nil {
				return ""
			}
			return text
		}
	}
	return out
}

// selectable returns the fields that field selectors may name.
func (v *version) selectable(o kind.Object) fields.Set {
	set := fields.Set{}
	for _, f := range v.spec.SelectableFields {
		at := split(f.JSONPath)
		value, found, err := unstructured.NestedFieldNoCopy(o.(*unstructured.Unstructured).Object, at...)
		text := ""
		if err == nil && found && value != nil {
			text = fmt.Sprint(value)
		}
		set[strings.Join(at, ".")] = text
	}
	return set
}
