package crd_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
)

// get returns a document and its ETag.
func (c *cluster) get(t testing.TB, path, accept string) (body, etag string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := apitest.HTTP(t, c.Admin(t)).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return readAll(t, resp.Body), resp.Header.Get("Etag")
}

// The schemas are published, change with the definition and go with it.
func TestOpenAPI(t *testing.T) {
	c := start(t, apitest.Options{})
	none, before := c.get(t, "/openapi/v2", "application/json")
	if strings.Contains(none, "com.example.stable") {
		t.Fatal("published before it is defined")
	}
	d := c.establish(t, definition(t, schemas))
	text, after := c.get(t, "/openapi/v2", "application/json")
	if before == after {
		t.Error("the ETag of version 2 has not changed")
	}
	type document struct {
		Definitions map[string]json.RawMessage
		Components  struct{ Schemas map[string]json.RawMessage }
		Paths       map[string]json.RawMessage
	}
	var v2 document
	if err := json.Unmarshal([]byte(text), &v2); err != nil {
		t.Fatal(err)
	}
	model := string(v2.Definitions["com.example.stable.v1.Foo"])
	for _, want := range []string{
		`"x-kubernetes-group-version-kind":[{"group":"stable.example.com","kind":"Foo","version":"v1"}]`,
		`"$ref":"#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"`,
		`"free":{"x-kubernetes-preserve-unknown-fields":true}`, // without type or properties
		`"note":{}`, // nullable
		`"x-kubernetes-list-map-keys":["port"]`,
	} {
		if !strings.Contains(model, want) {
			t.Errorf("version 2 lacks %s: %s", want, model)
		}
	}
	if v2.Definitions["com.example.stable.v1.FooList"] == nil || v2.Paths["/apis/stable.example.com/v1/namespaces/{namespace}/foos/{name}/scale"] == nil {
		t.Error("version 2 lacks the list or the path of the scale")
	}
	index, _ := c.get(t, "/openapi/v3", "application/json")
	if !strings.Contains(index, `"apis/stable.example.com/v1"`) {
		t.Errorf("version 3: %s", index)
	}
	text, first := c.get(t, "/openapi/v3/apis/stable.example.com/v1", "application/json")
	var v3 document
	if err := json.Unmarshal([]byte(text), &v3); err != nil {
		t.Fatal(err)
	}
	if m := string(v3.Components.Schemas["com.example.stable.v1.Foo"]); !strings.Contains(m, `"note":{"type":"string","nullable":true}`) || !strings.Contains(m, "x-kubernetes-validations") {
		t.Errorf("version 3: %s", m)
	}
	d.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["more"] = apiextensionsv1.JSONSchemaProps{Type: "string"}
	d.ResourceVersion = ""
	w := c.watchFoos(t)
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Patch(t.Context(), d.Name, "application/merge-patch+json", []byte(asJSON(t, map[string]any{"spec": d.Spec})), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for range w {
	}
	text, second := c.get(t, "/openapi/v3/apis/stable.example.com/v1", "application/json")
	if first == second || !strings.Contains(text, `"more"`) {
		t.Error("version 3 has not changed with the definition")
	}
	w = c.watchFoos(t)
	if err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Delete(t.Context(), d.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for range w {
	}
	if text, _ := c.get(t, "/openapi/v3", "application/json"); strings.Contains(text, "stable.example.com") {
		t.Error("published after its deletion")
	}
}
