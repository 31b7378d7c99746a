package openapi

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/api/kind"
)

const (
	v3Prefix = "#/components/schemas/"
	v2Prefix = "#/definitions/"
)

// V3 describes the kinds of one group and version.
func V3(gv schema.GroupVersion, kinds []*kind.Kind) *spec3.OpenAPI {
	s := &schemas{prefix: v3Prefix, models: map[string]*spec.Schema{}}
	paths := map[string]*spec3.Path{}
	for _, k := range kinds {
		name := s.kindModel(k)
		for path, ops := range pathsOf(k) {
			p := &spec3.Path{}
			for _, verb := range ops {
				op := operation3(k, verb, name)
				switch verb {
				case "get", "list":
					p.Get = op
				case "create":
					p.Post = op
				case "update":
					p.Put = op
				case "patch":
					p.Patch = op
				case "delete", "deletecollection":
					p.Delete = op
				}
			}
			paths[path] = p
		}
	}
	return &spec3.OpenAPI{
		Version:    "3.0.0",
		Info:       &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "v1.36.3"}},
		Paths:      &spec3.Paths{Paths: paths},
		Components: &spec3.Components{Schemas: s.models},
	}
}

// pathsOf lists a kind's paths with the verbs on each.
func pathsOf(k *kind.Kind) map[string][]string {
	base := "/apis/" + k.Group + "/" + k.Version + "/"
	if k.Group == "" {
		base = "/api/" + k.Version + "/"
	}
	all := base + k.Resource
	collection := all
	if k.Namespaced {
		collection = base + "namespaces/{namespace}/" + k.Resource
	}
	out := map[string][]string{
		collection:             {"list", "create", "deletecollection"},
		collection + "/{name}": {"get", "update", "patch", "delete"},
	}
	if k.Namespaced {
		out[all] = []string{"list"}
	}
	if k.HasStatus {
		out[collection+"/{name}/status"] = []string{"get", "update", "patch"}
	}
	if k.Scale != nil {
		out[collection+"/{name}/scale"] = []string{"get", "update", "patch"}
	}
	return out
}

var actions = map[string]string{"get": "get", "list": "list", "create": "post", "update": "put", "patch": "patch", "delete": "delete", "deletecollection": "deletecollection"}

// queryOf names the query parameters of a verb.
func queryOf(verb string) []string {
	switch verb {
	case "create", "update":
		return []string{"dryRun", "fieldManager", "fieldValidation"}
	case "patch":
		return []string{"dryRun", "fieldManager", "fieldValidation", "force"}
	case "delete":
		return []string{"dryRun", "gracePeriodSeconds", "propagationPolicy"}
	case "list", "deletecollection":
		return []string{"allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds", "watch"}
	}
	return nil
}

func operation3(k *kind.Kind, verb, model string) *spec3.Operation {
	op := &spec3.Operation{OperationProps: spec3.OperationProps{
		OperationId: actions[verb] + k.Kind,
		Responses:   &spec3.Responses{},
	}}
	if verb == "list" {
		model += "List"
	}
	answer := &spec3.Response{ResponseProps: spec3.ResponseProps{Description: "OK", Content: content(model)}}
	op.Responses.StatusCodeResponses = map[int]*spec3.Response{200: answer}
	for _, q := range queryOf(verb) {
		sch := simple("string", "")
		op.Parameters = append(op.Parameters, &spec3.Parameter{ParameterProps: spec3.ParameterProps{Name: q, In: "query", Schema: &sch}})
	}
	if verb == "create" || verb == "update" {
		op.RequestBody = &spec3.RequestBody{RequestBodyProps: spec3.RequestBodyProps{Content: content(model), Required: true}}
	}
	op.AddExtension("x-kubernetes-action", actions[verb])
	op.AddExtension("x-kubernetes-group-version-kind", gvkMap(k))
	return op
}

func content(model string) map[string]*spec3.MediaType {
	sch := spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(v3Prefix + model)}}
	return map[string]*spec3.MediaType{"application/json": {MediaTypeProps: spec3.MediaTypeProps{Schema: &sch}}}
}

// V2 describes all kinds in one document.
func V2(kinds []*kind.Kind) *spec.Swagger {
	s := &schemas{prefix: v2Prefix, models: map[string]*spec.Schema{}}
	paths := map[string]spec.PathItem{}
	for _, k := range kinds {
		name := s.kindModel(k)
		for path, verbs := range pathsOf(k) {
			var p spec.PathItem
			for _, verb := range verbs {
				op := operation2(k, verb, name)
				switch verb {
				case "get", "list":
					p.Get = op
				case "create":
					p.Post = op
				case "update":
					p.Put = op
				case "patch":
					p.Patch = op
				case "delete", "deletecollection":
					p.Delete = op
				}
			}
			for _, v := range []string{"namespace", "name"} {
				if strings.Contains(path, "{"+v+"}") {
					p.Parameters = append(p.Parameters, parameter2(v, "path"))
				}
			}
			paths[path] = p
		}
	}
	defs := spec.Definitions{}
	for name, m := range s.models {
		defs[name] = *m
	}
	return &spec.Swagger{SwaggerProps: spec.SwaggerProps{
		Swagger: "2.0", Info: &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "v1.36.3"}},
		Paths: &spec.Paths{Paths: paths}, Definitions: defs,
	}}
}

func operation2(k *kind.Kind, verb, model string) *spec.Operation {
	if verb == "list" {
		model += "List"
	}
	op := &spec.Operation{OperationProps: spec.OperationProps{ID: actions[verb] + k.Kind}}
	sch := spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(v2Prefix + model)}}
	op.Responses = &spec.Responses{ResponsesProps: spec.ResponsesProps{StatusCodeResponses: map[int]spec.Response{
		200: {ResponseProps: spec.ResponseProps{Description: "OK", Schema: &sch}}}}}
	for _, q := range queryOf(verb) {
		op.Parameters = append(op.Parameters, parameter2(q, "query"))
	}
	op.AddExtension("x-kubernetes-action", actions[verb])
	op.AddExtension("x-kubernetes-group-version-kind", gvkMap(k))
	return op
}

func parameter2(name, in string) spec.Parameter {
	return spec.Parameter{ParamProps: spec.ParamProps{Name: name, In: in, Required: in == "path"}, SimpleSchema: spec.SimpleSchema{Type: "string"}}
}
