package crd

import (
	"encoding/json"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api/apiextensions"
)

const fuzzed = `
spec:
  group: example.com
  scope: Namespaced
  names: {plural: foos, singular: foo, kind: Foo, listKind: FooList}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns: [{name: A, type: string, jsonPath: ".spec.free"}, {name: B, type: date, jsonPath: .spec.color}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              color: {type: string, default: red}
              replicas: {type: integer}
              note: {type: string, nullable: true}
              size: {x-kubernetes-int-or-string: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {known: {type: array, items: {type: string}}}}
              set: {type: array, x-kubernetes-list-type: set, items: {type: string}}
              ports: {type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [port], items: {type: object, required: [port], properties: {port: {type: integer}}}}
              template: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
            x-kubernetes-validations: [{rule: "!has(self.replicas) || self.replicas < 10"}]
`

func parsed(t testing.TB) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	d := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "foos.example.com"}}
	if err := yaml.Unmarshal([]byte(fuzzed), d); err != nil {
		t.Fatal(err)
	}
	d.Status.AcceptedNames = d.Spec.Names
	return d
}

// Whatever an object is: it is read or refused, what has been read is in its
// final form (reading it again changes nothing), and it is judged and printed.
func FuzzObject(f *testing.F) {
	v := newDefinition(f.Context(), parsed(f), nil).storage
	for _, seed := range []string{
		`{}`, `[]`, `null`, `{"metadata":null}`, `{"metadata":{"name":1}}`, `{"spec":null}`,
		`{"apiVersion":"example.com/v1","kind":"Foo","metadata":{"name":"a","labels":{"a":"b"},"x":1},"spec":{"color":null,"note":null,"x":1,"replicas":12,"free":{"known":[1],"y":{}}}}`,
		`{"spec":{"set":["a","a"],"ports":[{"port":1,"port":1},{}],"template":{"metadata":{"z":1}},"size":1.5}}`,
		`{"metadata":{"managedFields":[{"time":"x"}],"creationTimestamp":null,"ownerReferences":[{}]}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		obj, _, err := v.Decode(data, true)
		if err != nil {
			return
		}
		u := obj.(*unstructured.Unstructured)
		first, err := json.Marshal(u.Object)
		if err != nil {
			t.Fatal(err)
		}
		again, faults, err := v.Decode(first, true)
		if err != nil || len(faults) > 0 {
			t.Fatalf("read again: %v %v\n%s", err, faults, first)
		}
		second, err := json.Marshal(again.(*unstructured.Unstructured).Object)
		if err != nil || string(second) != string(first) {
			t.Errorf("read again: %v\n%s\n%s", err, first, second)
		}
		stored, err := v.DecodeStored(first)
		if err != nil {
			t.Errorf("from the store: %v", err)
		}
		v.check(t.Context(), obj, nil, "")
		v.check(t.Context(), obj, stored, "")
		v.kind.Row(obj, time.Unix(0, 0))
		v.kind.Scale.Replicas(obj)
		v.kind.PrepareStatus(obj.DeepCopyObject().(*unstructured.Unstructured), stored)
	})
}

// Whatever a schema is: the definition is refused, or its objects can be read.
func FuzzDefinition(f *testing.F) {
	b, err := yaml.YAMLToJSON([]byte(fuzzed))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"spec":{"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"a":{"type":"array","items":{"type":"object","default":{}}}}}}}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := parsed(t)
		if json.Unmarshal(data, d) != nil {
			return
		}
		d.Name = d.Spec.Names.Plural + "." + d.Spec.Group
		d.ResourceVersion, d.Namespace = "", ""
		apiextensions.Default(d)
		if errs := apiextensions.CustomResourceDefinition().Check(t.Context(), d, nil, ""); len(errs) > 0 {
			return
		}
		judged := judge(d, nil, metav1.Now())
		def := newDefinition(t.Context(), judged, nil)
		for _, v := range def.versions {
			obj, _, err := v.Decode([]byte(`{"spec":{"a":[1,{"b":null}]},"x":{"y":[]}}`), true)
			if err != nil {
				continue
			}
			v.check(t.Context(), obj, nil, "")
			v.describe(true)
			v.describe(false)
			if _, err := v.managed(); err != nil {
				t.Errorf("types: %v", err)
			}
		}
	})
}
