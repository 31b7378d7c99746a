// Package clientsuite is what every client.Interface must do, as tests: an
// implementation calls Run in one line.
package clientsuite

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
)

// patience bounds every wait; nothing takes nearly as long.
const patience = 20 * time.Second

// Run tests the implementation that open returns: an administrator's client of an
// empty server that ends with the test.
func Run(t *testing.T, open func(t *testing.T) client.Interface) {
	for _, c := range []struct {
		name string
		test func(*testing.T, client.Interface)
	}{
		{"writes and their errors", writes},
		{"each change is one event, in order", changes},
		{"a selector adds and deletes what begins and ceases to match", selector},
		{"lists are sorted and filtered", lists},
		{"a late subscriber begins with what is there", late},
		{"a cancelled subscription is silent", silence},
		{"subresources", subresources},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := open(t)
			for _, ns := range []string{"a", "b"} {
				create(t, cl, client.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
			}
			c.test(t, cl)
		})
	}
}

func config(namespace, name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"v": value}}, Data: map[string]string{"v": value}}
}

func key(namespace, name string) client.Key {
	return client.Key{Resource: client.ConfigMaps, Namespace: namespace, Name: name}
}

func create(t *testing.T, cl client.Interface, r client.Resource, o client.Object) client.Object {
	t.Helper()
	out, err := cl.Create(t.Context(), client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}, o)
	if err != nil {
		t.Fatalf("create %s %s: %v", r.Resource, o.GetName(), err)
	}
	return out
}

func patch(t *testing.T, cl client.Interface, k client.Key, change map[string]any) client.Object {
	t.Helper()
	data, err := json.Marshal(change)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cl.Patch(t.Context(), k, client.Patch{Type: types.MergePatchType, Data: data})
	if err != nil {
		t.Fatalf("patch %s: %v", k, err)
	}
	return out
}

func value(v string) map[string]any { return map[string]any{"data": map[string]string{"v": v}} }

func writes(t *testing.T, cl client.Interface) {
	ctx := t.Context()
	made := create(t, cl, client.ConfigMaps, config("a", "x", "1"))
	if made.GetUID() == "" || made.GetResourceVersion() == "" {
		t.Errorf("created without identity: %+v", made)
	}
	if _, err := cl.Create(ctx, key("a", "x"), config("a", "x", "1")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	patched := patch(t, cl, key("a", "x"), value("2"))
	if got := patched.(*corev1.ConfigMap).Data["v"]; got != "2" {
		t.Errorf("the patch answered %q", got)
	}
	if _, err := cl.Update(ctx, key("a", "x"), made.DeepCopyObject().(client.Object)); !apierrors.IsConflict(err) {
		t.Errorf("update of a stale object: %v", err)
	}
	next := patched.DeepCopyObject().(*corev1.ConfigMap)
	next.Data["v"] = "3"
	if _, err := cl.Update(ctx, key("a", "x"), next); err != nil {
		t.Errorf("update: %v", err)
	}
	got, err := client.Get[*corev1.ConfigMap](ctx, cl, key("a", "x"))
	if err != nil || got.Data["v"] != "3" {
		t.Errorf("get: %v, %v", got, err)
	}
	if err := cl.Delete(ctx, key("a", "x"), metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("other")}); !apierrors.IsConflict(err) {
		t.Errorf("delete of another incarnation: %v", err)
	}
	if err := cl.Delete(ctx, key("a", "x"), metav1.DeleteOptions{}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := cl.Get(ctx, key("a", "x")); !apierrors.IsNotFound(err) {
		t.Errorf("get of a deleted object: %v", err)
	}
	if err := cl.Delete(ctx, key("a", "x"), metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("delete of a deleted object: %v", err)
	}
	generated, err := cl.Create(ctx, client.Key{Resource: client.ConfigMaps, Namespace: "a"}, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "gen-"}})
	if err != nil || len(generated.GetName()) <= len("gen-") {
		t.Errorf("create with a generated name: %v, %v", generated, err)
	}
}

// Follower collects a subscription's events as text: "+a/x=1", "~a/x=2", "-a/x".
type Follower struct {
	t      testing.TB
	events chan string
	Cancel func()
}

// Follow subscribes to ConfigMaps, or to other objects by name alone.
func Follow(t testing.TB, cache client.Cache) *Follower {
	t.Helper()
	f := &Follower{t: t, events: make(chan string, 4096)}
	f.Cancel = cache.Subscribe(func(e client.Event) {
		sign := map[client.EventType]string{client.Added: "+", client.Modified: "~", client.Deleted: "-"}[e.Type]
		text := sign + e.Object.GetNamespace() + "/" + e.Object.GetName()
		if cm, ok := e.Object.(*corev1.ConfigMap); ok && e.Type != client.Deleted {
			text += "=" + cm.Data["v"]
		}
		if (e.Old == nil) != (e.Type == client.Added) {
			text += " with a wrong old state"
		}
		f.events <- text
	})
	return f
}

// Want compares the next events.
func (f *Follower) Want(want ...string) {
	f.t.Helper()
	for i, w := range want {
		select {
		case got := <-f.events:
			if got != w {
				f.t.Fatalf("event %d is %q, want %q", i, got, w)
			}
		case <-time.After(patience):
			f.t.Fatalf("event %d, %q, did not come", i, w)
		}
	}
}

// WantSet compares the next events, whose order is open.
func (f *Follower) WantSet(want ...string) {
	f.t.Helper()
	var got []string
	for range want {
		select {
		case e := <-f.events:
			got = append(got, e)
		case <-time.After(patience):
			f.t.Fatalf("events %q, want %q", got, want)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		f.t.Fatalf("events %q, want %q", got, want)
	}
}

func changes(t *testing.T, cl client.Interface) {
	cache := cl.Cache(client.ConfigMaps, "metadata.namespace=a")
	synced(t, cache)
	f := Follow(t, cache)
	defer f.Cancel()
	create(t, cl, client.ConfigMaps, config("b", "elsewhere", "1"))
	create(t, cl, client.ConfigMaps, config("a", "x", "0"))
	want := []string{"+a/x=0"}
	for i := range 50 {
		patch(t, cl, key("a", "x"), value(fmt.Sprint(i+1)))
		want = append(want, fmt.Sprintf("~a/x=%d", i+1))
	}
	if err := cl.Delete(t.Context(), key("a", "x"), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	create(t, cl, client.ConfigMaps, config("a", "x", "again"))
	f.Want(append(want, "-a/x", "+a/x=again")...)
}

func synced(t *testing.T, cache client.Cache) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := cache.WaitSynced(ctx); err != nil {
		t.Fatalf("the cache is not filled: %v", err)
	}
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

func selector(t *testing.T, cl client.Interface) {
	create(t, cl, client.ServiceAccounts, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "default"}})
	cache := cl.Cache(client.Pods, "spec.nodeName=n")
	f := Follow(t, cache)
	defer f.Cancel()
	for _, name := range []string{"x", "y"} {
		create(t, cl, client.Pods, pod(name))
	}
	bind := func(name, node string) {
		t.Helper()
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
		if _, err := cl.Create(t.Context(), client.Key{Resource: client.Pods, Namespace: "a", Name: name, Subresource: "binding"}, b); err != nil {
			t.Fatal(err)
		}
	}
	bind("y", "m")
	bind("x", "n")
	f.Want("+a/x")
	if _, ok := cache.Get("a", "x"); !ok {
		t.Error("the pod is not in the cache")
	}
	if _, ok := cache.Get("a", "y"); ok {
		t.Error("a pod of another node is in the cache")
	}
	zero := int64(0)
	if err := cl.Delete(t.Context(), client.Key{Resource: client.Pods, Namespace: "a", Name: "x"}, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	f.Want("-a/x")
}

func lists(t *testing.T, cl client.Interface) {
	for _, o := range []*corev1.ConfigMap{config("a", "z", "1"), config("b", "y", "1"), config("a", "x", "1"), config("a", "w", "2")} {
		create(t, cl, client.ConfigMaps, o)
	}
	cache := cl.Cache(client.ConfigMaps, "")
	synced(t, cache)
	f := Follow(t, cache)
	defer f.Cancel()
	f.WantSet("+a/z=1", "+b/y=1", "+a/x=1", "+a/w=2")
	for _, c := range []struct {
		namespace string
		sel       labels.Selector
		want      []string
	}{
		{"", nil, []string{"a/w", "a/x", "a/z", "b/y"}},
		{"a", nil, []string{"a/w", "a/x", "a/z"}},
		{"a", labels.SelectorFromSet(labels.Set{"v": "1"}), []string{"a/x", "a/z"}},
		{"c", nil, nil},
	} {
		var got []string
		cache.List(c.namespace, c.sel, func(o client.Object) bool {
			got = append(got, o.GetNamespace()+"/"+o.GetName())
			return true
		})
		if !slices.Equal(got, c.want) {
			t.Errorf("list of %q, %v: %q, want %q", c.namespace, c.sel, got, c.want)
		}
	}
	n := 0
	cache.List("", nil, func(client.Object) bool { n++; return n < 2 })
	if n != 2 {
		t.Errorf("the visit went on to %d objects", n)
	}
}

func late(t *testing.T, cl client.Interface) {
	cache := cl.Cache(client.ConfigMaps, "metadata.namespace=a")
	first := Follow(t, cache)
	defer first.Cancel()
	create(t, cl, client.ConfigMaps, config("a", "x", "1"))
	first.Want("+a/x=1")
	second := Follow(t, cache)
	defer second.Cancel()
	second.Want("+a/x=1")
	patch(t, cl, key("a", "x"), value("2"))
	first.Want("~a/x=2")
	second.Want("~a/x=2")
}

func silence(t *testing.T, cl client.Interface) {
	gone := Follow(t, cl.Cache(client.ConfigMaps, "metadata.namespace=a"))
	stays := Follow(t, cl.Cache(client.ConfigMaps, "metadata.namespace=a"))
	create(t, cl, client.ConfigMaps, config("a", "x", "1"))
	gone.Want("+a/x=1")
	gone.Cancel()
	patch(t, cl, key("a", "x"), value("2"))
	stays.Want("+a/x=1", "~a/x=2")
	select {
	case e := <-gone.events:
		t.Errorf("event %q after the subscription's end", e)
	default:
	}
	stays.Cancel()
	// A cache that nobody follows any more can be asked for again.
	anew := Follow(t, cl.Cache(client.ConfigMaps, "metadata.namespace=a"))
	defer anew.Cancel()
	anew.Want("+a/x=2")
}

func subresources(t *testing.T, cl client.Interface) {
	k := client.Key{Resource: client.Nodes, Name: "n"}
	create(t, cl, client.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	patch(t, cl, k.Sub("status"), map[string]any{"status": map[string]any{"nodeInfo": map[string]any{"kubeletVersion": "v9"}}})
	n, err := client.Get[*corev1.Node](t.Context(), cl, k)
	if err != nil || n.Status.NodeInfo.KubeletVersion != "v9" {
		t.Errorf("status of the node: %+v, %v", n, err)
	}
	patch(t, cl, k, map[string]any{"status": map[string]any{"nodeInfo": map[string]any{"kubeletVersion": "v10"}}})
	if n, err = client.Get[*corev1.Node](t.Context(), cl, k); err != nil || n.Status.NodeInfo.KubeletVersion != "v9" {
		t.Errorf("a write of the object changed its status: %+v, %v", n, err)
	}
}
