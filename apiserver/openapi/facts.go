package openapi

import (
	_ "embed" // facts.json
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Facts are what upstream publishes of a model and Go's types do not tell.
type Facts struct {
	Required   []string              `json:"required,omitempty"`
	Extensions map[string]any        `json:"extensions,omitempty"`
	Fields     map[string]FieldFacts `json:"fields,omitempty"`
}

// FieldFacts are those of a field.
type FieldFacts struct {
	Enum       []any          `json:"enum,omitempty"`  // the values that are permitted
	Items      []any          `json:"items,omitempty"` // those of a list's items or a map's values
	Extensions map[string]any `json:"extensions,omitempty"`
}

//go:embed facts.json
var factsJSON []byte

var facts = sync.OnceValue(func() map[string]*Facts { return embedded[*Facts]("facts.json", factsJSON) })

// embedded reads a file that is part of this program.
func embedded[T any](name string, content []byte) map[string]T {
	var all map[string]T
	if err := json.Unmarshal(content, &all); err != nil {
		panic(fmt.Sprintf("%s, which is part of this program: %v", name, err))
	}
	return all
}

// factsOf returns the facts of a model; nil if none are known.
func factsOf(model string) *Facts { return facts()[model] }

func (f *Facts) apply(m *spec.Schema) {
	if f == nil {
		return
	}
	m.Required = f.Required
	for k, v := range f.Extensions {
		m.AddExtension(k, v)
	}
	for name, p := range m.Properties {
		field := f.Fields[name]
		p.Enum = field.Enum
		switch {
		case field.Items == nil:
		case p.Items != nil && p.Items.Schema != nil:
			p.Items.Schema.Enum = field.Items
		case p.AdditionalProperties != nil && p.AdditionalProperties.Schema != nil:
			p.AdditionalProperties.Schema.Enum = field.Items
		}
		delete(p.Extensions, "x-kubernetes-list-type") // guesses
		delete(p.Extensions, "x-kubernetes-list-map-keys")
		for k, v := range field.Extensions {
			p.AddExtension(k, v)
		}
		m.Properties[name] = p
	}
}

// Extract returns the facts in a document of version 2.
func Extract(doc *spec.Swagger) map[string]*Facts {
	out := map[string]*Facts{}
	for name, m := range doc.Definitions {
		f := &Facts{Required: m.Required, Fields: map[string]FieldFacts{}}
		for k, v := range m.Extensions {
			if k != "x-kubernetes-group-version-kind" {
				extend(&f.Extensions, k, v)
			}
		}
		for field, p := range m.Properties {
			ff := FieldFacts{Enum: p.Enum}
			switch {
			case p.Items != nil && p.Items.Schema != nil:
				ff.Items = p.Items.Schema.Enum
			case p.AdditionalProperties != nil && p.AdditionalProperties.Schema != nil:
				ff.Items = p.AdditionalProperties.Schema.Enum
			}
			for k, v := range p.Extensions {
				if !strings.HasPrefix(k, "x-kubernetes-patch-") { // tags of the Go types tell
					extend(&ff.Extensions, k, v)
				}
			}
			if ff.Enum != nil || ff.Items != nil || ff.Extensions != nil {
				f.Fields[field] = ff
			}
		}
		out[name] = f
	}
	return out
}

func extend(m *map[string]any, k string, v any) {
	if *m == nil {
		*m = map[string]any{}
	}
	(*m)[k] = v
}
