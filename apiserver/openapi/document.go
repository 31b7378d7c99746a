package openapi

import (
	"net/http"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	v3Prefix = "#/components/schemas/"
	v2Prefix = "#/definitions/"
)

var (
	answers  = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	streams  = []string{"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"}
	patches  = []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}
	anyMedia = []string{"*/*"}
)

// produces are the media types of an operation's answers.
func (o *operation) produces() []string {
	switch {
	case o.action == "connect":
		return anyMedia
	case o.answer == "":
		return append([]string{"text/plain"}, answers...)
	case o.streams:
		return append(append([]string(nil), answers...), streams...)
	}
	return answers
}

// consumes are the media types of an operation's body.
func (o *operation) consumes() []string {
	if o.patch {
		return patches
	}
	return anyMedia
}

// bodyRequired: deletions have options that may be left out.
func (o *operation) bodyRequired() bool { return o.method != http.MethodDelete }

func (o *operation) extensions(e *spec.VendorExtensible) {
	e.AddExtension("x-kubernetes-action", o.action)
	e.AddExtension("x-kubernetes-group-version-kind", gvkMap(o.gvk))
}

// V3 describes the kinds of one group and version.
func V3(gv schema.GroupVersion, kinds []Served) *spec3.OpenAPI {
	s := &schemas{prefix: v3Prefix, models: map[string]*spec.Schema{}}
	paths := map[string]*spec3.Path{}
	for _, k := range kinds {
		for _, o := range s.operations(k) {
			p := paths[o.path]
			if p == nil {
				p = &spec3.Path{}
				for _, v := range o.places {
					p.Parameters = append(p.Parameters, parameter3(v))
				}
				paths[o.path] = p
			}
			*map[string]**spec3.Operation{
				http.MethodGet: &p.Get, http.MethodPut: &p.Put, http.MethodPost: &p.Post, http.MethodDelete: &p.Delete,
				http.MethodOptions: &p.Options, http.MethodHead: &p.Head, http.MethodPatch: &p.Patch,
			}[o.method] = operation3(&o)
		}
	}
	return &spec3.OpenAPI{
		Version:    "3.0.0",
		Info:       &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "v1.36.3"}},
		Paths:      &spec3.Paths{Paths: paths},
		Components: &spec3.Components{Schemas: s.models},
	}
}

func parameter3(p parameter) *spec3.Parameter {
	sch := simple(p.typ, "")
	sch.UniqueItems = true // as Kubernetes has it
	return &spec3.Parameter{ParameterProps: spec3.ParameterProps{Name: p.name, In: p.in, Description: p.doc, Required: p.in == "path", Schema: &sch}}
}

func operation3(o *operation) *spec3.Operation {
	op := &spec3.Operation{OperationProps: spec3.OperationProps{OperationId: o.id, Tags: []string{o.tag}, Responses: &spec3.Responses{}}}
	op.Responses.StatusCodeResponses = map[int]*spec3.Response{http.StatusUnauthorized: {ResponseProps: spec3.ResponseProps{Description: "Unauthorized"}}}
	for _, code := range o.codes {
		op.Responses.StatusCodeResponses[code] = &spec3.Response{ResponseProps: spec3.ResponseProps{Description: http.StatusText(code), Content: content(o.answer, o.produces())}}
	}
	for _, q := range o.query {
		op.Parameters = append(op.Parameters, parameter3(q))
	}
	if o.body != "" {
		op.RequestBody = &spec3.RequestBody{RequestBodyProps: spec3.RequestBodyProps{Content: content(o.body, o.consumes()), Required: o.bodyRequired()}}
	}
	o.extensions(&op.VendorExtensible)
	return op
}

// content describes a body: a model, or text.
func content(model string, media []string) map[string]*spec3.MediaType {
	out := map[string]*spec3.MediaType{}
	for _, m := range media {
		sch := schemaOfBody(v3Prefix, model)
		out[m] = &spec3.MediaType{MediaTypeProps: spec3.MediaTypeProps{Schema: &sch}}
	}
	return out
}

func schemaOfBody(prefix, model string) spec.Schema {
	if model == "" {
		return simple("string", "")
	}
	return spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(prefix + model)}}
}

// V2 describes all kinds in one document.
func V2(kinds []Served) *spec.Swagger {
	s := &schemas{prefix: v2Prefix, models: map[string]*spec.Schema{}}
	paths := map[string]spec.PathItem{}
	shared := sharedParameters{}
	for _, k := range kinds {
		for _, o := range s.operations(k) {
			p, ok := paths[o.path]
			if !ok {
				for _, v := range o.places {
					p.Parameters = append(p.Parameters, shared.refer(v))
				}
			}
			*map[string]**spec.Operation{
				http.MethodGet: &p.Get, http.MethodPut: &p.Put, http.MethodPost: &p.Post, http.MethodDelete: &p.Delete,
				http.MethodOptions: &p.Options, http.MethodHead: &p.Head, http.MethodPatch: &p.Patch,
			}[o.method] = operation2(&o, shared)
			paths[o.path] = p
		}
	}
	defs := spec.Definitions{}
	for name, m := range s.models {
		defs[name] = *m
	}
	bearer := spec.SecurityScheme{SecuritySchemeProps: spec.SecuritySchemeProps{Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication"}}
	return &spec.Swagger{SwaggerProps: spec.SwaggerProps{
		Swagger: "2.0", Info: &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "v1.36.3"}},
		Paths: &spec.Paths{Paths: paths}, Definitions: defs, Parameters: shared,
		SecurityDefinitions: spec.SecurityDefinitions{"BearerToken": &bearer}, Security: []map[string][]string{{"BearerToken": {}}},
	}}
}

// sharedParameters are written once in a document, and referred to.
type sharedParameters map[string]spec.Parameter

func (s sharedParameters) refer(p parameter) spec.Parameter {
	name := p.name
	for i := 2; ; i++ {
		if have, ok := s[name]; !ok || have.Description == p.doc && have.In == p.in {
			break
		}
		name = p.name + "-" + strconv.Itoa(i) // another of the same name
	}
	s[name] = spec.Parameter{
		ParamProps:   spec.ParamProps{Name: p.name, In: p.in, Description: p.doc, Required: p.in == "path"},
		SimpleSchema: spec.SimpleSchema{Type: p.typ}, CommonValidations: spec.CommonValidations{UniqueItems: true},
	}
	return spec.Parameter{Refable: spec.Refable{Ref: spec.MustCreateRef("#/parameters/" + name)}}
}

func operation2(o *operation, shared sharedParameters) *spec.Operation {
	op := &spec.Operation{OperationProps: spec.OperationProps{ID: o.id, Tags: []string{o.tag}, Schemes: []string{"https"}, Consumes: o.consumes(), Produces: o.produces()}}
	responses := map[int]spec.Response{http.StatusUnauthorized: {ResponseProps: spec.ResponseProps{Description: "Unauthorized"}}}
	for _, code := range o.codes {
		sch := schemaOfBody(v2Prefix, o.answer)
		responses[code] = spec.Response{ResponseProps: spec.ResponseProps{Description: http.StatusText(code), Schema: &sch}}
	}
	op.Responses = &spec.Responses{ResponsesProps: spec.ResponsesProps{StatusCodeResponses: responses}}
	if o.body != "" {
		sch := schemaOfBody(v2Prefix, o.body)
		op.Parameters = append(op.Parameters, spec.Parameter{ParamProps: spec.ParamProps{Name: "body", In: "body", Required: o.bodyRequired(), Schema: &sch}})
	}
	for _, q := range o.query {
		op.Parameters = append(op.Parameters, shared.refer(q))
	}
	o.extensions(&op.VendorExtensible)
	return op
}
