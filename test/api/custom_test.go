package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/cmd/local"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/controller/garbagecollector"
	"knarr.dev/knarr/controller/namespace"
)

var (
	definitionsGVR = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")
	thingsGVR      = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "things"}
)

// define serves Things, whose data is a map of strings as a ConfigMap's is.
func define(t testing.TB, s *apitest.Server) dynamic.NamespaceableResourceInterface {
	t.Helper()
	dyn, err := dynamic.NewForConfig(s.Admin(t))
	if err != nil {
		t.Fatal(err)
	}
	str := map[string]any{"type": "string"}
	d := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": "things.example.com"},
		"spec": map[string]any{
			"group": "example.com", "scope": "Namespaced", "names": map[string]any{"plural": "things", "kind": "Thing"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{"openAPIV3Schema": map[string]any{
				"type": "object", "properties": map[string]any{"data": map[string]any{"type": "object", "additionalProperties": str}}}}}},
		}}}
	crds := dyn.Resource(definitionsGVR)
	if _, err := crds.Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w, err := crds.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "things.example.com").String()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for ev := range w.ResultChan() {
		conditions, _, err := unstructured.NestedSlice(ev.Object.(*unstructured.Unstructured).Object, "status", "conditions")
		if err == nil && strings.Contains(fmt.Sprint(conditions), "InitialNamesAccepted") {
			return dyn.Resource(thingsGVR)
		}
	}
	t.Fatal("the definition was not established")
	return nil
}

func thing(name, value string, owners ...metav1.OwnerReference) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Thing", "data": map[string]any{"k": value}}}
	u.SetName(name)
	u.SetOwnerReferences(owners)
	return u
}

// Custom objects own and are owned, and go with their namespace; a definition
// that is made again is followed again.
func TestCustomResourcesAndControllers(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "a")
	ls := &local.Server{Registry: s.Registry, Authz: s.Authz, Tokens: s.Tokens, Now: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- engine.Run(ctx, ls.As(auth.Component("tester", auth.GroupMasters)), nobody{}, clock.RealClock{}, slog.New(slog.NewTextHandler(io.Discard, nil)),
			[]engine.Controller{garbagecollector.New(), namespace.New()})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	c := s.Client(t)
	for round := range 2 {
		things := define(t, s)
		owner, err := things.Namespace("a").Create(ctx, thing("owner", "1"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ref := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Thing", Name: "owner", UID: owner.GetUID()}
		if _, err := things.Namespace("a").Create(ctx, thing("owned", "1", ref), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CoreV1().ConfigMaps("a").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owned", OwnerReferences: []metav1.OwnerReference{ref}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w, err := things.Namespace("a").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=owned"})
		if err != nil {
			t.Fatal(err)
		}
		maps, err := c.CoreV1().ConfigMaps("a").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=owned"})
		if err != nil {
			t.Fatal(err)
		}
		if err := things.Namespace("a").Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		for ev := range w.ResultChan() {
			if ev.Type == "DELETED" {
				break
			}
		}
		for ev := range maps.ResultChan() {
			if ev.Type == "DELETED" {
				break
			}
		}
		w.Stop()
		maps.Stop()
		name := fmt.Sprint("gone", round)
		s.Namespace(t, name)
		ns, err := c.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := things.Namespace(name).Create(ctx, thing("x", "1"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		gone, err := c.CoreV1().Namespaces().Watch(ctx, metav1.ListOptions{ResourceVersion: ns.ResourceVersion, FieldSelector: "metadata.name=" + name})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		for ev := range gone.ResultChan() {
			if ev.Type == "DELETED" {
				break
			}
		}
		gone.Stop()
		if _, err := things.Namespace(name).Get(ctx, "x", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("in the deleted namespace: %v", err)
		}
		all, err := things.Watch(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		dyn, err := dynamic.NewForConfig(s.Admin(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := dyn.Resource(definitionsGVR).Delete(ctx, "things.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		for range all.ResultChan() { // ends with the definition
		}
	}
}

// nobody drops events.
type nobody struct{}

func (nobody) Event(client.Object, string, string, string) {}

// Custom objects are paged, selected, and shown as metadata alone.
func TestCustomResourceReads(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "a")
	things := define(t, s)
	ctx := t.Context()
	for i := range 5 {
		if _, err := things.Namespace("a").Create(ctx, thing(fmt.Sprint("t", i), "1"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	page, err := things.List(ctx, metav1.ListOptions{Limit: 2})
	if err != nil || len(page.Items) != 2 || page.GetContinue() == "" || *page.GetRemainingItemCount() != 3 {
		t.Fatalf("page: %v %v", page, err)
	}
	rest, err := things.List(ctx, metav1.ListOptions{Continue: page.GetContinue()})
	if err != nil || len(rest.Items) != 3 || rest.GetResourceVersion() != page.GetResourceVersion() {
		t.Errorf("rest: %v %v", rest, err)
	}
	meta, err := metadata.NewForConfig(s.Admin(t))
	if err != nil {
		t.Fatal(err)
	}
	l, err := meta.Resource(thingsGVR).Namespace("a").List(ctx, metav1.ListOptions{})
	if err != nil || len(l.Items) != 5 || l.Items[4].Name != "t4" {
		t.Errorf("metadata: %v %v", l, err)
	}
	all := true
	w, err := things.Watch(ctx, metav1.ListOptions{SendInitialEvents: &all, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for range 5 {
		if ev := <-w.ResultChan(); ev.Type != "ADDED" {
			t.Errorf("event %v", ev)
		}
	}
	if ev := <-w.ResultChan(); ev.Type != "BOOKMARK" || ev.Object.(*unstructured.Unstructured).GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("after the present state: %v", ev)
	}
	if err := things.Namespace("a").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if l, err := things.List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 0 {
		t.Errorf("after the deletion: %v %v", l, err)
	}
}

// Custom objects beside ConfigMaps, both as JSON through the dynamic client, so
// that the client costs the same.
func BenchmarkCustom(b *testing.B) {
	s := apitest.Start(b, apitest.Options{Etcd: true, Unwatched: true})
	dyn, err := dynamic.NewForConfig(s.Admin(b))
	if err != nil {
		b.Fatal(err)
	}
	value := strings.Repeat("x", 1024)
	for _, k := range []struct {
		name, apiVersion, kind string
		of                     dynamic.ResourceInterface
		path                   string
	}{
		{"ConfigMap", "v1", "ConfigMap", dyn.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace("default"), "/api/v1/namespaces/default/configmaps"},
		{"Thing", "example.com/v1", "Thing", define(b, s).Namespace("default"), "/apis/example.com/v1/namespaces/default/things"},
	} {
		object := func(name, value string) *unstructured.Unstructured {
			u := thing(name, value)
			u.SetAPIVersion(k.apiVersion)
			u.SetKind(k.kind)
			return u
		}
		run := 0
		b.Run("create/"+k.name, func(b *testing.B) {
			run++
			spread(b, 16, func(ctx context.Context, i int) error {
				_, err := k.of.Create(ctx, object(fmt.Sprint("c", run, "-", i), value), metav1.CreateOptions{})
				return err
			})
		})
		must(k.of.Create(b.Context(), object("warm", value), metav1.CreateOptions{}))(b)
		b.Run("get/"+k.name, func(b *testing.B) {
			spread(b, 16, func(ctx context.Context, _ int) error {
				_, err := k.of.Get(ctx, "warm", metav1.GetOptions{})
				return err
			})
		})
		const objects = 256
		for i := range objects {
			must(k.of.Create(b.Context(), object(fmt.Sprint("p", i), value), metav1.CreateOptions{}))(b)
		}
		b.Run("merge/"+k.name, func(b *testing.B) {
			spread(b, 16, func(ctx context.Context, i int) error {
				_, err := k.of.Patch(ctx, fmt.Sprint("p", i%objects), types.MergePatchType, fmt.Appendf(nil, `{"data":{"k":"%d%s"}}`, i, value), metav1.PatchOptions{})
				return err
			})
		})
		b.Run("apply/"+k.name, func(b *testing.B) {
			spread(b, 16, func(ctx context.Context, i int) error {
				_, err := k.of.Apply(ctx, fmt.Sprint("p", i%objects), object(fmt.Sprint("p", i%objects), fmt.Sprint(i, value)), metav1.ApplyOptions{FieldManager: "bench", Force: true})
				return err
			})
		})
		if err := k.of.DeleteCollection(b.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				for i := w; i < 5000; i += 16 {
					if _, err := k.of.Create(b.Context(), object(fmt.Sprint("l", i), value), metav1.CreateOptions{}); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		p := newPeer(b, s.Admin(b))
		b.Run("list5000/"+k.name, func(b *testing.B) {
			spread(b, 1, func(ctx context.Context, _ int) error {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+k.path, nil)
				if err != nil {
					return err
				}
				req.Header.Set("Accept", "application/json")
				req.Header.Set("Accept-Encoding", "identity")
				resp, err := p.http.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				_, err = io.Copy(io.Discard, resp.Body)
				return err
			})
		})
	}
}
