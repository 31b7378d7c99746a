package crd_test

import (
	"errors"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

// A watch whose request found the kind before its definition changed, and which
// begins only then, ends as those that began earlier.
func TestWatchOfFormerKind(t *testing.T) {
	c := start(t, apitest.Options{})
	const v1 = "\n- name: v1\n  served: true\n  storage: true\n  schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true"
	d := c.establish(t, definition(t, v1+"}}\n"))
	res := c.Registry.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: "foos"})
	before, err := c.foos("v1").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d, err = c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), d.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Spec.Versions = definition(t, v1+", description: other}}\n").Spec.Versions
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for range before.ResultChan() { // until the change is in force
	}
	w, err := c.Registry.Watch(t.Context(), registry.Request{Resource: res}, registry.ListOptions{}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if events, err := w.Next(t.Context()); !errors.Is(err, watchcache.ErrEnded) {
		t.Errorf("watch %v, %v; want its end", events, err)
	}
}
