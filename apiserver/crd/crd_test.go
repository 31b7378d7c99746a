package crd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	versioned "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/apitest"
)

const group = "stable.example.com"

// cluster is a server with clients and a namespace.
type cluster struct {
	*apitest.Server
	crds versioned.Interface
	dyn  dynamic.Interface
	disc *discovery.DiscoveryClient
}

func start(t testing.TB, o apitest.Options) *cluster {
	t.Helper()
	s := apitest.Start(t, o)
	s.Namespace(t, "a")
	c := &cluster{Server: s}
	cfg := s.Admin(t)
	var err error
	if c.crds, err = versioned.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if c.dyn, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if c.disc, err = discovery.NewDiscoveryClientForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	return c
}

// definition parses a version's YAML (what stands below spec.versions[0]) into a
// definition of Foos.
func definition(t testing.TB, versions string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	d := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "foos." + group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "foos", Singular: "foo", Kind: "Foo", ShortNames: []string{"fo"}, Categories: []string{"all"}},
		},
	}
	if err := yaml.UnmarshalStrict([]byte(versions), &d.Spec.Versions); err != nil {
		t.Fatal(err)
	}
	return d
}

// establish creates a definition and waits until it is served.
func (c *cluster) establish(t testing.TB, d *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c.await(t, d.Name, func(d *apiextensionsv1.CustomResourceDefinition) bool {
		return has(d, apiextensionsv1.Established, "True")
	})
}

func has(d *apiextensionsv1.CustomResourceDefinition, kind apiextensionsv1.CustomResourceDefinitionConditionType, status apiextensionsv1.ConditionStatus) bool {
	for _, c := range d.Status.Conditions {
		if c.Type == kind {
			return c.Status == status
		}
	}
	return false
}

// await watches a definition until ok says so; nil stands for a deleted one.
func (c *cluster) await(t testing.TB, name string, ok func(*apiextensionsv1.CustomResourceDefinition) bool) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Watch(ctx, metav1.SingleObject(metav1.ObjectMeta{Name: name}))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for ev := range w.ResultChan() {
		d, is := ev.Object.(*apiextensionsv1.CustomResourceDefinition)
		if is && ev.Type != watch.Deleted && ok(d) {
			return d
		}
		if ev.Type == watch.Deleted && ok(nil) {
			return nil
		}
	}
	t.Fatalf("definition %s did not come to the state that was waited for", name)
	return nil
}

func (c *cluster) foos(version string) dynamic.ResourceInterface {
	return c.dyn.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: "foos"}).Namespace("a")
}

// watchFoos returns a channel that is closed when the served kind changes or goes.
func (c *cluster) watchFoos(t testing.TB) <-chan watch.Event {
	t.Helper()
	w, err := c.foos("v1").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w.ResultChan()
}

func object(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.UnmarshalJSON(b); err != nil {
		t.Fatal(err)
	}
	return u
}

func foo(t testing.TB, version, name, rest string) *unstructured.Unstructured {
	return object(t, fmt.Sprintf("apiVersion: %s/%s\nkind: Foo\nmetadata: {name: %s}\n%s", group, version, name, rest))
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const open = `
- name: v1
  served: true
  storage: true
  schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// A definition is served as soon as its condition says so, is found in discovery,
// and its objects live and go as those of any kind.
func TestLifeOfADefinition(t *testing.T) {
	c := start(t, apitest.Options{})
	ctx := t.Context()
	begin := time.Now()
	d := c.establish(t, definition(t, open))
	t.Logf("established after %v", time.Since(begin))
	if got := d.Status.AcceptedNames.ListKind; got != "FooList" {
		t.Errorf("list kind %q", got)
	}
	foos := c.foos("v1")
	w, err := foos.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made, err := foos.Create(ctx, foo(t, "v1", "x", "spec: {n: 1, deep: {er: [1, 2]}}"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.GetGeneration() != 1 || made.GetUID() == "" {
		t.Errorf("made %v", made)
	}
	if ev := <-w.ResultChan(); ev.Type != watch.Added || ev.Object.(*unstructured.Unstructured).GetName() != "x" {
		t.Errorf("event %v", ev)
	}
	got, err := foos.Get(ctx, "x", metav1.GetOptions{})
	if err != nil || asJSON(t, got) != asJSON(t, made) {
		t.Errorf("get: %v %v", got, err)
	}
	next, err := foos.Patch(ctx, "x", types.MergePatchType, []byte(`{"spec":{"n":2},"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
	if err != nil || next.GetGeneration() != 2 {
		t.Errorf("patch: %v %v", next, err)
	}
	if _, err := foos.Patch(ctx, "x", types.StrategicMergePatchType, []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsUnsupportedMediaType(err) {
		t.Errorf("strategic merge patch: %v", err)
	}
	l, err := foos.List(ctx, metav1.ListOptions{LabelSelector: "a=b"})
	if err != nil || len(l.Items) != 1 || l.GetKind() != "FooList" || l.GetAPIVersion() != group+"/v1" {
		t.Errorf("list: %v %v", l, err)
	}
	_, lists, err := c.disc.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	if text := asJSON(t, lists); !strings.Contains(text, `"name":"foos","singularName":"foo","namespaced":true,"group":"stable.example.com","version":"v1","kind":"Foo"`) {
		t.Errorf("discovery: %s", text)
	}

	// The objects go with their definition, those with finalizers when they can.
	if _, err := foos.Patch(ctx, "x", types.JSONPatchType, []byte(`[{"op":"add","path":"/metadata/finalizers","value":["example.com/hold"]}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Delete(ctx, d.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, d.Name, func(d *apiextensionsv1.CustomResourceDefinition) bool {
		return d != nil && has(d, apiextensionsv1.Terminating, "True")
	})
	if _, err := foos.Create(ctx, foo(t, "v1", "late", ""), metav1.CreateOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("create while terminating: %v", err)
	}
	if _, err := foos.Patch(ctx, "x", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	var last watch.Event
	for ev := range w.ResultChan() { // ends with the definition
		last = ev
	}
	if last.Type != watch.Deleted {
		t.Errorf("the watch ended with %v", last.Type)
	}
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(ctx, d.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get of the deleted definition: %v", err)
	}
	if _, err := foos.List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("list without a definition: %v", err)
	}
	c.establish(t, definition(t, open))
	if l, err := foos.List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 0 {
		t.Errorf("list with a new definition: %v %v", l, err)
	}
}

// What is in the store is served again by the next server.
func TestRestart(t *testing.T) {
	st := &shared{}
	first := start(t, apitest.Options{Store: st.open()})
	first.establish(t, definition(t, open))
	if _, err := first.foos("v1").Create(t.Context(), foo(t, "v1", "x", "spec: {n: 1}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	second := apitest.Start(t, apitest.Options{Store: st.open()})
	dyn, err := dynamic.NewForConfig(second.Admin(t))
	if err != nil {
		t.Fatal(err)
	}
	got, err := dyn.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: "foos"}).Namespace("a").Get(t.Context(), "x", metav1.GetOptions{})
	if err != nil || got.GetName() != "x" {
		t.Errorf("after a restart: %v %v", got, err)
	}
}
