// Package openapi describes the served kinds as OpenAPI v2 and v3 documents.
//
// Schemas are read off the Go types of k8s.io/api when somebody first asks:
// names, types and merge keys by reflection, descriptions from the types' own
// SwaggerDoc methods, or for those that have none from descriptions.json. What only comments in the types' sources tell (which fields are
// required, which values an enumeration has, how lists merge) is in facts.json, as
// upstream's API server publishes it; make record writes it.
package openapi

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/api/kind"
)

// schemas collects the models that a document refers to.
type schemas struct {
	prefix string // "#/components/schemas/" or "#/definitions/"
	models map[string]*spec.Schema
	whole  bool // leave nothing out
}

type (
	named     interface{ OpenAPIModelName() string }
	primitive interface {
		OpenAPISchemaType() []string
		OpenAPISchemaFormat() string
	}
)

// modelName is the name under which a struct type is published.
func modelName(t reflect.Type) string {
	if n, ok := reflect.New(t).Interface().(named); ok {
		return n.OpenAPIModelName()
	}
	return strings.ReplaceAll(strings.ReplaceAll(t.PkgPath(), "/", "."), "k8s.io", "io.k8s") + "." + t.Name()
}

// ref adds the model of a struct type and returns a reference to it.
func (s *schemas) ref(t reflect.Type) spec.Schema {
	name := modelName(t)
	if _, ok := s.models[name]; !ok {
		s.models[name] = nil // being made: types may be recursive
		m := s.structSchema(t)
		s.models[name] = &m
	}
	return spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(s.prefix + name)}}
}

func simple(typ, format string) spec.Schema {
	return spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{typ}, Format: format}}
}

// schemaOf describes any type.
func (s *schemas) schemaOf(t reflect.Type) spec.Schema {
	if t.Kind() == reflect.Pointer {
		return s.schemaOf(t.Elem())
	}
	if t.Kind() == reflect.Struct {
		return s.ref(t)
	}
	switch t.Kind() {
	case reflect.Bool:
		return simple("boolean", "")
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Uint:
		return simple("integer", "int64")
	case reflect.Int32, reflect.Uint32, reflect.Int16, reflect.Uint16, reflect.Int8, reflect.Uint8:
		return simple("integer", "int32")
	case reflect.Float32, reflect.Float64:
		return simple("number", "double")
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return simple("string", "byte")
		}
		item := s.schemaOf(t.Elem())
		return spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"array"}, Items: &spec.SchemaOrArray{Schema: &item}}}
	case reflect.Map:
		item := s.schemaOf(t.Elem())
		return spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}, AdditionalProperties: &spec.SchemaOrBool{Allows: true, Schema: &item}}}
	case reflect.String:
		return simple("string", "")
	}
	return simple("object", "")
}

// structSchema describes a struct type itself.
func (s *schemas) structSchema(t reflect.Type) spec.Schema {
	docs := descriptionsOf(t)
	if p, ok := reflect.New(t).Interface().(primitive); ok {
		typ := p.OpenAPISchemaType() // none: any value
		return spec.Schema{SchemaProps: spec.SchemaProps{Type: typ[:min(1, len(typ))], Format: p.OpenAPISchemaFormat(), Description: docs[""]}}
	}
	out := simple("object", "")
	out.Description = docs[""]
	out.Properties = map[string]spec.Schema{}
	s.fields(t, docs, &out)
	factsOf(modelName(t)).apply(&out)
	return out
}

func (s *schemas) fields(t reflect.Type, docs map[string]string, out *spec.Schema) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if name == "" && (f.Anonymous || strings.Contains(opts, "inline")) {
			s.inline(f.Type, out)
			continue
		}
		if name == "" {
			name = f.Name
		}
		p := s.schemaOf(f.Type)
		if p.Description = docs[name]; p.Description == "" {
			p.Description = described()["*"][name]
		}
		s.merging(f, &p)
		out.Properties[name] = p
		optional := strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero") || f.Type.Kind() == reflect.Pointer
		if !optional {
			out.Required = append(out.Required, name)
		}
	}
}

func (s *schemas) inline(t reflect.Type, out *spec.Schema) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	s.fields(t, descriptionsOf(t), out)
}

// merging adds how strategic merge patch treats a list, and what refers to
// objects needs: a reference with neighbours is written as allOf.
func (s *schemas) merging(f reflect.StructField, p *spec.Schema) {
	if v := f.Tag.Get("patchStrategy"); v != "" {
		p.AddExtension("x-kubernetes-patch-strategy", v)
		if f.Tag.Get("patchMergeKey") == "" && f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.String {
			p.AddExtension("x-kubernetes-list-type", "set")
		}
	}
	if v := f.Tag.Get("patchMergeKey"); v != "" {
		p.AddExtension("x-kubernetes-patch-merge-key", v)
		p.AddExtension("x-kubernetes-list-type", "map")
		p.AddExtension("x-kubernetes-list-map-keys", []any{v})
	}
	if p.Ref.String() != "" && s.prefix == v3Prefix {
		ref := p.Ref
		p.Ref = spec.Ref{}
		p.AllOf = []spec.Schema{{SchemaProps: spec.SchemaProps{Ref: ref}}}
	}
}

// kindModel adds a kind's model, marked with its group, version and kind.
func (s *schemas) kindModel(k *kind.Kind) (name string) {
	if k.Schema != nil {
		return s.customModel(k)
	}
	t := reflect.TypeOf(k.New()).Elem()
	s.ref(t)
	name = modelName(t)
	s.mark(name, k.GVK())
	if k.NewList != nil {
		list := reflect.TypeOf(k.NewList()).Elem()
		s.ref(list)
		gvk := k.GVK()
		gvk.Kind += "List"
		s.mark(modelName(list), gvk)
	}
	return name
}

// mark adds a kind that a model has: several versions may share one.
func (s *schemas) mark(model string, gvk schema.GroupVersionKind) {
	const key = "x-kubernetes-group-version-kind"
	m := s.models[model]
	have, _ := m.Extensions[key].([]any)
	for _, v := range have {
		if reflect.DeepEqual(v, gvkMap(gvk)) {
			return
		}
	}
	m.AddExtension(key, append(have, gvkMap(gvk)))
}

func gvkMap(gvk schema.GroupVersionKind) map[string]any {
	return map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind}
}
