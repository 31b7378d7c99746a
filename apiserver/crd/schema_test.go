package crd_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"knarr.dev/knarr/apiserver/apitest"
)

const schemas = `
- name: v1
  served: true
  storage: true
  subresources:
    status: {}
    scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
  selectableFields: [{jsonPath: .spec.color}]
  additionalPrinterColumns:
  - {name: Color, type: string, jsonPath: .spec.color}
  - {name: Replicas, type: integer, jsonPath: .spec.replicas}
  - {name: Made, type: date, jsonPath: .metadata.creationTimestamp}
  schema:
    openAPIV3Schema:
      type: object
      properties:
        status:
          type: object
          properties: {replicas: {type: integer}, selector: {type: string}}
        spec:
          type: object
          properties:
            color: {type: string, default: red, enum: [red, green, blue]}
            replicas: {type: integer, minimum: 0}
            size: {x-kubernetes-int-or-string: true}
            note: {type: string, nullable: true}
            free: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {known: {type: string}}}
            set: {type: array, x-kubernetes-list-type: set, items: {type: string}}
            ports:
              type: array
              x-kubernetes-list-type: map
              x-kubernetes-list-map-keys: [port]
              items: {type: object, required: [port], properties: {port: {type: integer}, protocol: {type: string, default: TCP}}}
            template: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
            low: {type: integer}
            high: {type: integer}
            fixed: {type: string, x-kubernetes-validations: [{rule: "self == oldSelf", message: "is immutable", reason: FieldValueForbidden}]}
          x-kubernetes-validations:
          - {rule: "!has(self.low) || !has(self.high) || self.low <= self.high", messageExpression: "'low ' + 'is above high'", fieldPath: .low}
`

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Objects are held to the schema in Kubernetes' words.
func TestValidation(t *testing.T) {
	c := start(t, apitest.Options{})
	c.establish(t, definition(t, schemas))
	foos := c.foos("v1")
	for _, tc := range []struct{ name, spec, want string }{
		{"type", `{color: 3}`, `Foo.stable.example.com "x" is invalid: [spec.color: Invalid value: "integer": spec.color in body must be of type string: "integer", spec.color: Unsupported value: 3: supported values: "red", "green", "blue", <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation]`},
		{"enum", `{color: pink}`, `Foo.stable.example.com "x" is invalid: [spec.color: Unsupported value: "pink": supported values: "red", "green", "blue", <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation]`},
		{"minimum", `{replicas: -1}`, `spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0`},
		{"required", `{ports: [{protocol: UDP}]}`, `spec.ports[0].port: Required value`},
		{"map key twice", `{ports: [{port: 1}, {port: 1}]}`, `spec.ports[1]: Duplicate value: {"port":1}`},
		{"set", `{set: [a, a]}`, `spec.set[1]: Duplicate value: "a"`},
		{"int or string", `{size: [1]}`, `spec.size: Invalid value: "array": spec.size in body must be of type integer,string: "array"`},
		{"embedded", `{template: {foo: bar}}`, `spec.template.apiVersion: Required value`},
		{"rule", `{low: 3, high: 2}`, `spec.low: Invalid value: low is above high`},
	} {
		_, err := foos.Create(t.Context(), foo(t, "v1", "x", "spec: "+tc.spec), metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(message(err), tc.want) {
			t.Errorf("%s: %v\nwant %s", tc.name, err, tc.want)
		}
	}
	if _, err := foos.Create(t.Context(), foo(t, "v1", "ok", `spec: {size: 50%, note: null, fixed: a, template: {apiVersion: v1, kind: Pod, metadata: {name: p}, any: 1}}`), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := foos.Patch(t.Context(), "ok", types.MergePatchType, []byte(`{"spec":{"fixed":"b"}}`), metav1.PatchOptions{})
	if want := `Foo.stable.example.com "ok" is invalid: spec.fixed: Forbidden: is immutable`; message(err) != want {
		t.Errorf("transition rule: %v\nwant %s", err, want)
	}
}

// Unknown fields are dropped, defaults filled; a request may ask for strictness.
func TestPruningAndDefaults(t *testing.T) {
	c := start(t, apitest.Options{})
	c.establish(t, definition(t, schemas))
	foos := c.foos("v1")
	const text = `spec: {unknown: 1, note: null, ports: [{port: 1, x: 2}], free: {any: {thing: 1}}, template: {apiVersion: v1, kind: Pod, metadata: {name: a, unknownSub: b}}}`
	_, err := foos.Create(t.Context(), foo(t, "v1", "x", text), metav1.CreateOptions{FieldValidation: "Strict"})
	want := `Foo in version "v1" cannot be handled as a Foo: strict decoding error: unknown field "spec.ports[0].x", unknown field "spec.unknown", unknown field "spec.template.metadata.unknownSub"`
	if !apierrors.IsBadRequest(err) || message(err) != want {
		t.Errorf("strict: %v\nwant %s", err, want)
	}
	obj, err := foos.Create(t.Context(), foo(t, "v1", "x", text), metav1.CreateOptions{FieldValidation: "Warn"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := asJSON(t, obj.Object["spec"]), `{"color":"red","free":{"any":{"thing":1}},"note":null,"ports":[{"port":1,"protocol":"TCP"}],"template":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}}`; got != want {
		t.Errorf("stored %s\nwant   %s", got, want)
	}
	_, err = foos.Patch(t.Context(), "x", types.MergePatchType, []byte(`{"spec":{"nope":1}}`), metav1.PatchOptions{FieldValidation: "Strict"})
	if !strings.Contains(message(err), `strict decoding error: unknown field "spec.nope"`) {
		t.Errorf("strict patch: %v", err)
	}
}

// Status and scale are changed apart from the rest; only the rest raises the
// generation.
func TestSubresources(t *testing.T) {
	c := start(t, apitest.Options{})
	c.establish(t, definition(t, schemas))
	foos, ctx := c.foos("v1"), t.Context()
	obj, err := foos.Create(ctx, foo(t, "v1", "x", "spec: {replicas: 2}\nstatus: {replicas: 9}"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := obj.Object["status"]; ok {
		t.Errorf("status set at create: %v", obj)
	}
	obj.Object["status"] = map[string]any{"replicas": int64(1), "selector": "a=b"}
	obj.Object["spec"] = map[string]any{"replicas": int64(7)}
	obj.SetLabels(map[string]string{"no": "no"})
	if obj, err = foos.UpdateStatus(ctx, obj, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if obj.GetGeneration() != 1 || obj.GetLabels() != nil || asJSON(t, obj.Object["spec"]) != `{"color":"red","replicas":2}` || asJSON(t, obj.Object["status"]) != `{"replicas":1,"selector":"a=b"}` {
		t.Errorf("after the status: %v", obj)
	}
	scale, err := foos.Get(ctx, "x", metav1.GetOptions{}, "scale")
	if err != nil || asJSON(t, scale.Object["spec"])+asJSON(t, scale.Object["status"]) != `{"replicas":2}{"replicas":1,"selector":"a=b"}` {
		t.Errorf("scale: %v %v", scale, err)
	}
	if _, err := foos.Patch(ctx, "x", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	obj, err = foos.Get(ctx, "x", metav1.GetOptions{})
	if n, _, _ := unstructured.NestedInt64(obj.Object, "spec", "replicas"); err != nil || n != 5 || obj.GetGeneration() != 2 {
		t.Errorf("after the scale: %v %v", obj, err)
	}
	if obj, err = foos.Patch(ctx, "x", types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}},"status":{"replicas":77}}`), metav1.PatchOptions{}); err != nil || obj.GetGeneration() != 2 || asJSON(t, obj.Object["status"]) != `{"replicas":1,"selector":"a=b"}` {
		t.Errorf("metadata: %v %v", obj, err)
	}
}

// Objects are merged by the keys of the schema's lists, and fields have owners.
func TestApply(t *testing.T) {
	c := start(t, apitest.Options{})
	c.establish(t, definition(t, schemas))
	foos, ctx := c.foos("v1"), t.Context()
	apply := func(manager, spec string, force bool) (*unstructured.Unstructured, error) {
		return foos.Apply(ctx, "x", foo(t, "v1", "x", "spec: "+spec), metav1.ApplyOptions{FieldManager: manager, Force: force})
	}
	if _, err := apply("one", `{color: blue, ports: [{port: 1}, {port: 2, protocol: UDP}]}`, false); err != nil {
		t.Fatal(err)
	}
	obj, err := apply("two", `{ports: [{port: 3}]}`, false)
	if err != nil || asJSON(t, obj.Object["spec"]) != `{"color":"blue","ports":[{"port":1,"protocol":"TCP"},{"port":2,"protocol":"UDP"},{"port":3,"protocol":"TCP"}]}` {
		t.Errorf("merged: %v %v", obj, err)
	}
	if _, err := apply("two", `{color: green}`, false); !apierrors.IsConflict(err) || !strings.Contains(message(err), `conflict with "one": .spec.color`) {
		t.Errorf("conflict: %v", err)
	}
	if obj, err = apply("two", `{color: green}`, true); err != nil || asJSON(t, obj.Object["spec"]) != `{"color":"green","ports":[{"port":1,"protocol":"TCP"},{"port":2,"protocol":"UDP"}]}` {
		t.Errorf("forced: %v %v", obj, err)
	}
	if _, err := apply("one", `{nope: 1}`, false); !strings.Contains(message(err), ".spec.nope: field not declared in schema") {
		t.Errorf("unknown field: %v", err)
	}
	if obj, err = apply("one", `{}`, false); err != nil || asJSON(t, obj.Object["spec"]) != `{"color":"green"}` {
		t.Errorf("given up: %v %v", obj, err)
	}
}

// What was done to an object is remembered for its likes, and only for them.
func TestApplyAgain(t *testing.T) {
	c := start(t, apitest.Options{})
	c.establish(t, definition(t, schemas))
	foos, ctx := c.foos("v1"), t.Context()
	for i := range 3 {
		name := fmt.Sprint("x", i)
		apply := func(manager, spec string) (*unstructured.Unstructured, error) {
			return foos.Apply(ctx, name, foo(t, "v1", name, "spec: "+spec), metav1.ApplyOptions{FieldManager: manager})
		}
		for _, step := range []struct{ manager, spec, want, refused string }{
			{"one", `{color: blue, replicas: 2}`, `{"color":"blue","replicas":2}`, ""},
			{"one", `{color: green, replicas: 2}`, `{"color":"green","replicas":2}`, ""},
			{"two", `{color: green}`, `{"color":"green","replicas":2}`, ""},
			{"two", `{color: blue}`, "", `conflict with "one": .spec.color`},
			{"one", `{color: green}`, `{"color":"green"}`, ""},
			{"one", `{color: green, replicas: x}`, "", `.spec.replicas: expected numeric`},
			{"one", `{color: green, nope: 1}`, "", `.spec.nope: field not declared in schema`},
			{"one", `{}`, `{"color":"green"}`, ""},
			{"two", `{color: blue}`, `{"color":"blue"}`, ""},
		} {
			obj, err := apply(step.manager, step.spec)
			if step.refused != "" {
				if err == nil || !strings.Contains(message(err), step.refused) {
					t.Errorf("%s: %s applies %s: %v, want %s", name, step.manager, step.spec, err, step.refused)
				}
				continue
			}
			if err != nil || asJSON(t, obj.Object["spec"]) != step.want {
				t.Errorf("%s: %s applies %s: %v %v", name, step.manager, step.spec, obj, err)
				continue
			}
			before := obj.GetResourceVersion()
			if obj, err = apply(step.manager, step.spec); err != nil || obj.GetResourceVersion() != before {
				t.Errorf("%s: %s applies %s again: %v %v", name, step.manager, step.spec, obj, err)
			}
		}
	}
}

// Fields that the definition names select objects; others are refused.
func TestSelectableFieldsAndColumns(t *testing.T) {
	c := start(t, apitest.Options{})
	c.establish(t, definition(t, schemas))
	foos, ctx := c.foos("v1"), t.Context()
	for name, color := range map[string]string{"a": "red", "b": "blue"} {
		if _, err := foos.Create(ctx, foo(t, "v1", name, "spec: {replicas: 3, color: "+color+"}"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := foos.List(ctx, metav1.ListOptions{FieldSelector: "spec.color=blue"})
	if err != nil || len(l.Items) != 1 || l.Items[0].GetName() != "b" {
		t.Errorf("list: %v %v", l, err)
	}
	if _, err := foos.List(ctx, metav1.ListOptions{FieldSelector: "spec.size=1"}); !apierrors.IsBadRequest(err) || !strings.Contains(message(err), "field label not supported: spec.size") {
		t.Errorf("unknown field: %v", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/apis/stable.example.com/v1/namespaces/a/foos/b", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	resp, err := apitest.HTTP(t, c.Admin(t)).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := readAll(t, resp.Body)
	if !strings.Contains(body, `"cells":["b","blue",3,"0s"]`) && !strings.Contains(body, `"cells":["b","blue",3,"1s"]`) {
		t.Errorf("table: %s", body)
	}
}

// Definitions that are wrong are refused; names that others have are not granted.
func TestDefinitionsAreChecked(t *testing.T) {
	c := start(t, apitest.Options{})
	crds, ctx := c.crds.ApiextensionsV1().CustomResourceDefinitions(), t.Context()
	for _, tc := range []struct{ name, versions, want string }{
		{"no schema", `[{name: v1, served: true, storage: true}]`, `spec.versions[0].schema.openAPIV3Schema: Required value`},
		{"not structural", `[{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {a: {description: x}}}}}]`, `spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields`},
		{"rule does not compile", `[{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-validations: [{rule: "self.nope > 1"}]}}}]`, `compilation failed`},
		{"rule too dear", `[{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {a: {type: array, items: {type: array, items: {type: string, x-kubernetes-validations: [{rule: "self.contains('a')"}]}}}}}}}]`, `estimated rule cost exceeds budget`},
		{"two stored", `[{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}, {name: v2, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]`, `must have exactly one version marked as storage version`},
	} {
		if _, err := crds.Create(ctx, definition(t, tc.versions), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(message(err), tc.want) {
			t.Errorf("%s: %v\nwant %s", tc.name, err, tc.want)
		}
	}
	c.establish(t, definition(t, open))
	other := definition(t, open)
	other.Name = "bars." + group
	other.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{Plural: "bars", Kind: "Foo", ShortNames: []string{"fo"}}
	if _, err := crds.Create(ctx, other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got := c.await(t, other.Name, func(d *apiextensionsv1.CustomResourceDefinition) bool {
		return has(d, apiextensionsv1.NamesAccepted, "False")
	})
	if got.Status.Conditions[0].Reason != "ListKindConflict" || !has(got, apiextensionsv1.Established, "False") {
		t.Errorf("conditions %v", got.Status.Conditions)
	}
	if err := crds.Delete(ctx, "foos."+group, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, other.Name, func(d *apiextensionsv1.CustomResourceDefinition) bool {
		return has(d, apiextensionsv1.Established, "True")
	})

	approved := definition(t, open)
	approved.Name, approved.Spec.Group = "foos.x.k8s.io", "x.k8s.io"
	if _, err := crds.Create(ctx, approved, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(message(err), "api-approved.kubernetes.io") {
		t.Errorf("without approval: %v", err)
	}
	approved.Annotations = map[string]string{"api-approved.kubernetes.io": "https://github.com/kubernetes/kubernetes/pull/1"}
	c.establish(t, approved)
}

// Two versions, one stored: each is read and written as itself.
func TestVersions(t *testing.T) {
	c := start(t, apitest.Options{})
	const two = `
- name: v1beta1
  served: true
  storage: true
  deprecated: true
  schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {a: {type: string}, b: {type: string, default: old}}}}}}
- name: v1
  served: true
  storage: false
  schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {a: {type: string}, c: {type: string, default: new}}}}}}
`
	d := c.establish(t, definition(t, two))
	ctx := t.Context()
	w, err := c.foos("v1").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.foos("v1beta1").Create(ctx, foo(t, "v1beta1", "x", "spec: {a: x}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	spec := func(of dynamic.ResourceInterface, version, want string) {
		t.Helper()
		obj, err := of.Get(ctx, "x", metav1.GetOptions{})
		if err != nil || asJSON(t, obj.Object["spec"]) != want || obj.GetAPIVersion() != group+"/"+version {
			t.Errorf("%s: %v %v, want %s", version, obj, err, want)
		}
		l, err := of.List(ctx, metav1.ListOptions{})
		if err != nil || len(l.Items) != 1 || asJSON(t, l.Items[0].Object) != asJSON(t, obj.Object) {
			t.Errorf("%s: list %v %v", version, l, err)
		}
	}
	spec(c.foos("v1beta1"), "v1beta1", `{"a":"x","b":"old"}`)
	spec(c.foos("v1"), "v1", `{"a":"x","c":"new"}`)
	if ev := <-w.ResultChan(); ev.Object.(*unstructured.Unstructured).GetAPIVersion() != group+"/v1" {
		t.Errorf("event %v", ev)
	}
	if _, err := c.foos("v1").Patch(ctx, "x", types.MergePatchType, []byte(`{"spec":{"a":"y"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	spec(c.foos("v1beta1"), "v1beta1", `{"a":"y","b":"old"}`)

	// The other version comes to be the stored one, the first is served no more.
	d, err = c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(ctx, d.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Spec.Versions[0].Storage, d.Spec.Versions[0].Served, d.Spec.Versions[1].Storage = false, false, true
	if d, err = c.crds.ApiextensionsV1().CustomResourceDefinitions().Update(ctx, d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := asJSON(t, d.Status.StoredVersions); got != `["v1beta1","v1"]` {
		t.Errorf("stored versions %s", got)
	}
	for range w.ResultChan() { // ends when the change is in force
	}
	if _, err := c.foos("v1beta1").Get(ctx, "x", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a version that is not served: %v", err)
	}
	spec(c.foos("v1"), "v1", `{"a":"y","c":"new"}`)
}
