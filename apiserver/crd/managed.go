package crd

import (
	"fmt"

	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/openapi"
)

// managed has server-side apply merge by the declared schema.
func (v *version) managed() (kind.Managed, error) {
	if _, err := v.structure(); err != nil {
		return kind.Managed{}, err
	}
	types, err := managedfields.NewTypeConverter(openapi.Models(v.kind), !v.prunes())
	if err != nil {
		return kind.Managed{}, fmt.Errorf("types of %s: %w", v.gvk, err)
	}
	return kind.Managed{Types: types, Convertor: convertor{v.def}, Creater: creater{}}, nil
}

// convertor converts between the versions of a definition for the field manager,
// which has objects of other versions when their managers wrote in those.
type convertor struct{ def *definition }

// Convert implements runtime.ObjectConvertor.
func (c convertor) Convert(in, out, _ any) error {
	from, ok1 := in.(*unstructured.Unstructured)
	to, ok2 := out.(*unstructured.Unstructured)
	if !ok1 || !ok2 {
		return fmt.Errorf("convert a %T to a %T", in, out)
	}
	obj, err := c.ConvertToVersion(from, to.GroupVersionKind().GroupVersion())
	if err != nil {
		return err
	}
	to.Object = obj.(*unstructured.Unstructured).Object
	return nil
}

// ConvertToVersion implements runtime.ObjectConvertor.
func (c convertor) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("convert a %T to %s", in, target)
	}
	gvk, ok := target.KindForGroupVersionKinds([]schema.GroupVersionKind{u.GroupVersionKind()})
	if !ok {
		return nil, fmt.Errorf("%v is unstructured and is not suitable for converting to %q", u.GroupVersionKind(), target)
	}
	v := c.def.version(gvk.Version)
	if v == nil {
		return nil, runtime.NewNotRegisteredErrForTarget("", nil, target)
	}
	out, err := v.Convert(c.def.ctx, []kind.Object{u})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// ConvertFieldLabel implements runtime.ObjectConvertor; nobody asks for it.
func (c convertor) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

type creater struct{}

// New implements runtime.ObjectCreater.
func (creater) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(gvk)
	return u, nil
}

// describe is the kind's schema for OpenAPI.
func (v *version) describe(v2 bool) *spec.Schema {
	s, err := v.structure()
	if err != nil || s == nil || v2 && (s.XPreserveUnknownFields || !v.prunes()) {
		return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
	}
	if v2 {
		s = lossy(s)
	}
	return s.ToKubeOpenAPI()
}

// lossy is a schema without what OpenAPI v2, or kubectl when it reads it, cannot
// express, as Kubernetes' documentation lists it: null, alternatives, and fields
// beside unknown ones.
func lossy(s *structural.Structural) *structural.Structural {
	out := s.DeepCopy()
	visit := structural.Visitor{Structural: func(s *structural.Structural) bool {
		if val := s.ValueValidation; val != nil {
			val.AllOf, val.OneOf, val.AnyOf, val.Not = nil, nil, nil, nil
			for name, p := range s.Properties {
				if p.Nullable {
					val.Required = without(val.Required, name)
				}
			}
			if a := s.AdditionalProperties; a != nil && a.Structural != nil && a.Structural.Nullable {
				val.Required = nil
			}
		}
		if s.Nullable {
			s.Type, s.Nullable, s.Items, s.Properties = "", false, nil, nil
		}
		if s.XPreserveUnknownFields {
			s.Items, s.Properties = nil, nil
			if s.Type == "object" {
				s.Type = ""
			}
		}
		if s.Items == nil && s.Type == "array" {
			s.Type = ""
		}
		return true
	}}
	visit.Visit(out)
	return out
}

func without(list []string, name string) (out []string) {
	for _, v := range list {
		if v != name {
			out = append(out, v)
		}
	}
	return out
}
