package hooks_test

import (
	"strings"
	"testing"

	admv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/apitest"
)

const widgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: &s {type: object, properties: {spec: {type: object, properties: {size: {type: integer, default: 3}, color: {type: string}}}}}}}
  - {name: v2, served: true, storage: false, schema: {openAPIV3Schema: *s}}
`

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

// Webhooks see custom resources in the version that they ask for; what they add
// is pruned and filled with defaults like what clients send.
func TestCustomResources(t *testing.T) {
	b := serve(t, map[string]answer{
		"/patch": patch(`[{"op":"add","path":"/spec/color","value":"red"},{"op":"add","path":"/spec/unknown","value":1},{"op":"remove","path":"/spec/size"}]`),
		"/v1":    allow,
		"/deny":  deny,
	})
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "ns")
	d, err := dynamic.NewForConfig(s.Admin(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	crds := d.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if _, err := crds.Create(ctx, parse(t, widgets), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := crds.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for e := range w.ResultChan() {
		if text, _ := yaml.Marshal(e.Object); strings.Contains(string(text), "type: Established") {
			break
		}
	}
	w.Stop()
	c := kubernetes.NewForConfigOrDie(s.Admin(t))
	configureMutating(t, c, "patch", b.mutating("/patch", rule([]string{"example.com"}, []string{"*"}, []string{"widgets"}, admv1.Create)))
	configure(t, c, "v1", b.validating("/v1", rule([]string{"example.com"}, []string{"v1"}, []string{"widgets"}, admv1.OperationAll)))
	res := d.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v2", Resource: "widgets"}).Namespace("ns")
	o, err := res.Create(ctx, parse(t, "{apiVersion: example.com/v2, kind: Widget, metadata: {name: w}, spec: {size: 5}}"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := o.Object["spec"].(map[string]any)
	if len(spec) != 2 || spec["color"] != "red" || spec["size"] != int64(3) {
		t.Errorf("spec %v", spec)
	}
	q := b.last(t, "/v1")
	if q.Kind.Version != "v1" || q.RequestKind.Version != "v2" || !strings.Contains(string(q.Object.Raw), `"example.com/v1"`) || !strings.Contains(string(q.Object.Raw), `"red"`) {
		t.Errorf("asked about %v (requested %v): %s", q.Kind, q.RequestKind, q.Object.Raw)
	}
	configure(t, c, "deny", b.validating("/deny", rule([]string{"example.com"}, []string{"*"}, []string{"*"}, admv1.Delete)))
	if err := res.Delete(ctx, "w", metav1.DeleteOptions{}); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("deletion: %v", err)
	}
	// A definition can be refused as well.
	configure(t, c, "crd", b.validating("/deny", rule([]string{"apiextensions.k8s.io"}, []string{"v1"}, []string{"customresourcedefinitions"}, admv1.Update)))
	if _, err := crds.Patch(ctx, "widgets.example.com", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("update of the definition: %v", err)
	}
}
