package local_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/storagemigration"
	"knarr.dev/knarr/store"
)

var migrations = client.Resource{Group: "storagemigration.k8s.io", Version: "v1beta1", Resource: "storageversionmigrations"}

// A definition's former version can go once a migration has succeeded, however soon
// after the change of the storage version that was asked for.
func TestStorageVersionMigration(t *testing.T) {
	a := &aggregated{Server: apitest.Start(t, apitest.Options{Extensions: true})}
	var err error
	if a.here, err = dynamic.NewForConfig(a.Admin(t)); err != nil {
		t.Fatal(err)
	}
	a.Namespace(t, "ns")
	const count = 100
	a.create(t, a.here, definitions, "", `{metadata: {name: flunders.wardle.example.com}, spec: {group: wardle.example.com, scope: Namespaced,
names: {plural: flunders, singular: flunder, kind: Flunder, listKind: FlunderList},
versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}},
  {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object}}}]}}`)
	a.await(t, a.here, definitions, "flunders.wardle.example.com", "Established", "True")
	for i := range count {
		a.create(t, a.here, flunders, "ns", fmt.Sprintf("{metadata: {name: f%d}}", i))
	}
	stored := func() (versions []string) {
		got, err := a.Store.Range(t.Context(), "/registry/wardle.example.com/flunders/", store.RangeOptions{})
		if err != nil || len(got.KVs) != count {
			t.Fatalf("%d objects, %v", len(got.KVs), err)
		}
		for _, kv := range got.KVs {
			v := "v1"
			if strings.Contains(string(kv.Value), `"apiVersion":"wardle.example.com/v2"`) {
				v = "v2"
			}
			versions = append(versions, v)
		}
		slices.Sort(versions)
		return slices.Compact(versions)
	}
	if v := stored(); !slices.Equal(v, []string{"v1"}) {
		t.Fatalf("stored as %v", v)
	}
	a.control(t, storagemigration.New())
	versions := func(change func(versions []any) []any) []any {
		t.Helper()
		d, err := a.here.Resource(definitions).Get(t.Context(), "flunders.wardle.example.com", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		v, _, _ := unstructured.NestedSlice(d.Object, "spec", "versions")
		if err := unstructured.SetNestedSlice(d.Object, change(v), "spec", "versions"); err != nil {
			t.Fatal(err)
		}
		if d, err = a.here.Resource(definitions).Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		list, _, _ := unstructured.NestedSlice(d.Object, "status", "storedVersions")
		return list
	}
	if v := versions(func(v []any) []any {
		v[0].(map[string]any)["storage"], v[1].(map[string]any)["storage"] = false, true
		return v
	}); len(v) != 2 {
		t.Fatalf("stored versions %v", v)
	}
	migrate := func(name, resource string) {
		t.Helper()
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "storagemigration.k8s.io/v1beta1", "kind": "StorageVersionMigration",
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"resource": map[string]any{"group": "wardle.example.com", "resource": resource}}}}
		if _, err := a.here.Resource(migrations).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	migrate("waits", "others")
	migrate("flunders", "flunders")
	a.await(t, a.here, migrations, "flunders", "Succeeded", "True")
	if v := stored(); !slices.Equal(v, []string{"v2"}) {
		t.Errorf("stored as %v", v)
	}
	if m := a.await(t, a.here, definitions, "flunders.wardle.example.com", "StorageMigrating", "False"); !strings.Contains(m, "succeeded") {
		t.Error(m)
	}
	if m := a.await(t, a.here, migrations, "waits", "Running", "True"); !strings.Contains(m, "others.wardle.example.com is not served") || !strings.Contains(m, time.Now().UTC().Format("2006-01-02")) {
		t.Error(m)
	}
	if v := versions(func(v []any) []any { return v[1:] }); !slices.Equal(v, []any{"v2"}) {
		t.Errorf("stored versions %v", v)
	}
}
