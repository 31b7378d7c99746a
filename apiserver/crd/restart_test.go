package crd_test

import (
	"fmt"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"knarr.dev/knarr/apiserver/apitest"
)

// A watch that goes on after a restart sees what happened before it.
func TestWatchResumesAcrossRestart(t *testing.T) {
	st := &shared{}
	var from string
	t.Run("before", func(t *testing.T) {
		c := start(t, apitest.Options{Store: st.open()})
		c.establish(t, definition(t, open))
		foos, ctx := c.foos("v1"), t.Context()
		for _, name := range []string{"old", "x"} {
			if _, err := foos.Create(ctx, foo(t, "v1", name, "spec: {size: 1}"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		l, err := foos.List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		from = l.GetResourceVersion()
		if _, err := foos.Patch(ctx, "x", types.MergePatchType, []byte(`{"spec":{"size":2}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := foos.Delete(ctx, "x", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := foos.Create(ctx, foo(t, "v1", "late", "spec: {size: 3}"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	second := apitest.Start(t, apitest.Options{Store: st.open()})
	dyn, err := dynamic.NewForConfig(second.Admin(t))
	if err != nil {
		t.Fatal(err)
	}
	foos := dyn.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: "foos"}).Namespace("a")
	w, err := foos.Watch(t.Context(), metav1.ListOptions{ResourceVersion: from})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if _, err := foos.Create(t.Context(), foo(t, "v1", "z", "spec: {size: 4}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MODIFIED x 2", "DELETED x 2", "ADDED late 3", "ADDED z 4"} {
		ev := <-w.ResultChan()
		u, ok := ev.Object.(*unstructured.Unstructured)
		if !ok {
			t.Fatalf("%v: %+v, want %s", ev.Type, ev.Object, want)
		}
		n, _, _ := unstructured.NestedInt64(u.Object, "spec", "size")
		if got := fmt.Sprint(ev.Type, " ", u.GetName(), " ", n); got != want {
			t.Errorf("event %s, want %s", got, want)
		}
	}
	if l, err := foos.List(t.Context(), metav1.ListOptions{}); err != nil || len(l.Items) != 3 {
		t.Errorf("list %v, %v: want old, late and z", l, err)
	}
}

const movable = `
- {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
- {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// After a change of the storage version, writing each object as it is moves it.
func TestStorageVersionMigration(t *testing.T) {
	st := &shared{}
	c := start(t, apitest.Options{Store: st.open()})
	ctx := t.Context()
	d := c.establish(t, definition(t, movable))
	foos := c.foos("v1")
	made, err := foos.Create(ctx, foo(t, "v1", "x", "spec: {size: 1}"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stored := func() string {
		t.Helper()
		kv, err := st.Get(ctx, "/registry/"+group+"/foos/a/x")
		if err != nil || kv == nil {
			t.Fatalf("stored: %v, %v", kv, err)
		}
		_, rest, _ := strings.Cut(string(kv.Value), `"apiVersion":"`+group+"/")
		version, _, _ := strings.Cut(rest, `"`)
		return version
	}
	update := func(fn func()) {
		t.Helper()
		next, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(ctx, d.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d = next
		fn()
	}
	same := func(want string) *unstructured.Unstructured {
		t.Helper()
		now, err := foos.Get(ctx, "x", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out, err := foos.Update(ctx, now, metav1.UpdateOptions{})
		if err != nil || stored() != want {
			t.Fatalf("%v: stored as %s, want %s", err, stored(), want)
		}
		return out
	}
	if out := same("v1"); out.GetResourceVersion() != made.GetResourceVersion() {
		t.Error("a write that changes nothing was stored")
	}
	w := c.watchFoos(t)
	update(func() {
		d.Spec.Versions[0].Storage, d.Spec.Versions[1].Storage = false, true
		if d, err = c.crds.ApiextensionsV1().CustomResourceDefinitions().Update(ctx, d, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	for range w { // ends when the change takes hold, just before it is in force
	}
	if stored() != "v1" {
		t.Fatal("moved by itself")
	}
	for stored() == "v1" {
		if _, err := foos.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	moved := same("v2")
	if moved.GetResourceVersion() == made.GetResourceVersion() || moved.GetGeneration() != made.GetGeneration() || moved.GetAPIVersion() != group+"/v1" {
		t.Errorf("moved: %v", moved)
	}
	if out := same("v2"); out.GetResourceVersion() != moved.GetResourceVersion() {
		t.Error("stored again")
	}
	update(func() {
		d.Status.StoredVersions = []string{"v2"}
		if d, err = c.crds.ApiextensionsV1().CustomResourceDefinitions().UpdateStatus(ctx, d, metav1.UpdateOptions{}); err != nil || len(d.Status.StoredVersions) != 1 {
			t.Errorf("stored versions %v, %v", d.Status.StoredVersions, err)
		}
	})
	if out := same("v2"); out.GetResourceVersion() != moved.GetResourceVersion() {
		t.Error("stored again")
	}
}

// What changes nothing about the objects leaves their watches alone.
func TestWatchOutlivesChangesOfMetadata(t *testing.T) {
	c := start(t, apitest.Options{})
	d := c.establish(t, definition(t, open))
	w := c.watchFoos(t)
	crds, ctx := c.crds.ApiextensionsV1().CustomResourceDefinitions(), t.Context()
	if _, err := crds.Patch(ctx, d.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"},"annotations":{"c":"d"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := crds.Patch(ctx, d.Name, types.MergePatchType, []byte(`{"status":{"conditions":[]}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	// Again: the controller has seen both changes.
	c.await(t, d.Name, func(d *apiextensionsv1.CustomResourceDefinition) bool {
		return d.Labels["a"] == "b" && has(d, apiextensionsv1.Established, "True")
	})
	if _, err := c.foos("v1").Create(ctx, foo(t, "v1", "x", "spec: {size: 1}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if ev, ok := <-w; !ok || ev.Object.(*unstructured.Unstructured).GetName() != "x" {
		t.Errorf("event %v %v", ev, ok)
	}
}
