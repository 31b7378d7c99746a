package openapi

import (
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/api/kind"
)

var (
	typeMetaDocs   = metav1.TypeMeta{}.SwaggerDoc()
	objectMetaType = reflect.TypeFor[metav1.ObjectMeta]()
	listMetaType   = reflect.TypeFor[metav1.ListMeta]()
)

// Models returns the models of a kind and of all that it refers to, by name, as
// server-side apply reads them: nothing is left out, references are plain.
func Models(k *kind.Kind) map[string]*spec.Schema {
	s := &schemas{prefix: v2Prefix, whole: true, models: map[string]*spec.Schema{}}
	s.kindModel(k)
	return s.models
}

// customName is a custom kind's model name: the group backwards, the version and
// the kind.
func customName(k *kind.Kind) string {
	parts := strings.Split(k.Group, ".")
	slices.Reverse(parts)
	return strings.Join(append(parts, k.Version, k.Kind), ".")
}

// customModel adds the models of a kind without a Go type, and of its list.
func (s *schemas) customModel(k *kind.Kind) (name string) {
	name = customName(k)
	m := k.Schema(s.prefix == v2Prefix && !s.whole)
	if m.Properties != nil || m.Extensions != nil || s.prefix == v3Prefix || s.whole {
		s.addTypeMeta(m)
		s.embedded(m)
	}
	m.AddExtension("x-kubernetes-group-version-kind", []any{gvkMap(k.GVK())})
	s.models[name] = m

	item := spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(s.prefix + name)}}
	if s.prefix == v3Prefix {
		item = spec.Schema{SchemaProps: spec.SchemaProps{AllOf: []spec.Schema{item}}}
	}
	list := simple("object", "")
	list.Description = k.ListKind + " is a list of " + k.Kind
	list.Required = []string{"items"}
	list.Properties = map[string]spec.Schema{
		"apiVersion": documented("string", typeMetaDocs["apiVersion"]),
		"kind":       documented("string", typeMetaDocs["kind"]),
		"metadata":   s.describedRef(listMetaType, metav1.ListMeta{}.SwaggerDoc()[""]),
		"items": {SchemaProps: spec.SchemaProps{Type: []string{"array"}, Items: &spec.SchemaOrArray{Schema: &item},
			Description: "List of " + k.Resource + ". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"}},
	}
	gvk := gvkMap(k.GVK())
	gvk["kind"] = k.ListKind
	list.AddExtension("x-kubernetes-group-version-kind", []any{gvk})
	s.models[name+"List"] = &list
	return name
}

func documented(typ, doc string) spec.Schema {
	s := simple(typ, "")
	s.Description = doc
	return s
}

// describedRef refers to the model of a struct type, with a description beside it.
func (s *schemas) describedRef(t reflect.Type, doc string) spec.Schema {
	ref := s.ref(t)
	if s.prefix == v3Prefix {
		return spec.Schema{SchemaProps: spec.SchemaProps{Description: doc, AllOf: []spec.Schema{ref}}}
	}
	ref.Description = doc
	return ref
}

// addTypeMeta describes what every object has.
func (s *schemas) addTypeMeta(m *spec.Schema) {
	if m.Properties == nil {
		m.Properties = map[string]spec.Schema{}
	}
	m.Properties["apiVersion"] = documented("string", typeMetaDocs["apiVersion"])
	m.Properties["kind"] = documented("string", typeMetaDocs["kind"])
	m.Properties["metadata"] = s.describedRef(objectMetaType, "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata")
}

// embedded describes the metadata of objects inside the object.
func (s *schemas) embedded(m *spec.Schema) {
	if is, _ := m.Extensions.GetBool("x-kubernetes-embedded-resource"); is {
		s.addTypeMeta(m)
	}
	for name, p := range m.Properties {
		if name == "metadata" && p.Ref.String() != "" {
			continue
		}
		s.embedded(&p)
		m.Properties[name] = p
	}
	if m.Items != nil && m.Items.Schema != nil {
		s.embedded(m.Items.Schema)
	}
	if m.AdditionalProperties != nil && m.AdditionalProperties.Schema != nil {
		s.embedded(m.AdditionalProperties.Schema)
	}
}
