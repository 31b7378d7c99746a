package diff

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"k8s.io/kube-openapi/pkg/validation/spec"

	"knarr.dev/knarr/apiserver/openapi"
)

// Operation is what OpenAPI says of one method of a path.
type Operation struct {
	ID     string   `json:"id"`
	Action string   `json:"action"`
	Kind   string   `json:"kind"` // group/version.kind
	Body   string   `json:"body,omitempty"`
	Answer string   `json:"answer,omitempty"`
	Query  []string `json:"query,omitempty"`
}

// OpenAPI is a server's document of version 2, without its sentences.
type OpenAPI struct {
	Operations map[string]Operation      `json:"operations"` // by method and path
	Models     map[string]*openapi.Facts `json:"-"`
	Fields     map[string][]string       `json:"-"` // of each model: name and type
}

// Describe asks for the document.
func (s *Server) Describe(ctx context.Context) (*OpenAPI, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/openapi/v2", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var doc spec.Swagger
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	out := &OpenAPI{Operations: map[string]Operation{}, Models: openapi.Extract(&doc), Fields: map[string][]string{}}
	for name, m := range doc.Definitions {
		for field, p := range m.Properties {
			out.Fields[name] = append(out.Fields[name], fmt.Sprint(field, " ", p.Type, p.Format, base(p.Ref.String())))
		}
		slices.Sort(out.Fields[name])
	}
	for path, item := range doc.Paths.Paths {
		for method, op := range map[string]*spec.Operation{"get": item.Get, "put": item.Put, "post": item.Post, "delete": item.Delete, "options": item.Options, "head": item.Head, "patch": item.Patch} {
			if op != nil && op.Extensions["x-kubernetes-action"] != nil {
				out.Operations[method+" "+path] = describe(&doc, append(slices.Clone(item.Parameters), op.Parameters...), op)
			}
		}
	}
	return out, nil
}

func describe(doc *spec.Swagger, parameters []spec.Parameter, op *spec.Operation) Operation {
	o := Operation{ID: op.ID, Action: fmt.Sprint(op.Extensions["x-kubernetes-action"])}
	if gvk, ok := op.Extensions["x-kubernetes-group-version-kind"].(map[string]any); ok {
		o.Kind = fmt.Sprintf("%v/%v.%v", gvk["group"], gvk["version"], gvk["kind"])
	}
	if r, ok := op.Responses.StatusCodeResponses[http.StatusOK]; ok && r.Schema != nil {
		o.Answer = base(r.Schema.Ref.String())
	}
	for _, p := range parameters {
		if name, shared := strings.CutPrefix(p.Ref.String(), "#/parameters/"); shared {
			p = doc.Parameters[name]
		}
		switch p.In {
		case "query":
			o.Query = append(o.Query, p.Name+" "+p.Type)
		case "body":
			if p.Schema != nil {
				o.Body = base(p.Schema.Ref.String())
			}
		}
	}
	slices.Sort(o.Query)
	return o
}

func base(ref string) string { return ref[strings.LastIndexByte(ref, '/')+1:] }
