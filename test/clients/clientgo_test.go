package clients

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// TestInformers: typed and dynamic informers see what is written, and end in the
// same state as a list.
func TestInformers(t *testing.T) {
	ns := namespace(t, "informers")
	c := client(t)
	dyn, err := dynamic.NewForConfig(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f := informers.NewSharedInformerFactoryWithOptions(c, 0, informers.WithNamespace(ns))
	d := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dyn, 0, ns, nil)
	defer d.Shutdown()
	defer f.Shutdown()
	defer cancel()
	typed, loose := f.Core().V1().ConfigMaps(), d.ForResource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"})
	counts := make(chan string, 100)
	if _, err := typed.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if o.(*corev1.ConfigMap).Labels["mine"] != "" { // not the one with the root certificate
				counts <- "add"
			}
		},
		UpdateFunc: func(_, _ any) { counts <- "update" },
		DeleteFunc: func(any) { counts <- "delete" },
	}); err != nil {
		t.Fatal(err)
	}
	_ = loose.Informer()
	f.Start(ctx.Done())
	d.Start(ctx.Done())
	f.WaitForCacheSync(ctx.Done())
	d.WaitForCacheSync(ctx.Done())
	maps := c.CoreV1().ConfigMaps(ns)
	for i := range 10 {
		m, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m", i), Labels: map[string]string{"mine": "1"}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m.Data = map[string]string{"k": "v"}
		if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := maps.Delete(ctx, "m9", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both informers have nine", func() error {
		sel := labels.SelectorFromSet(labels.Set{"mine": "1"})
		a, err := typed.Lister().List(sel)
		if err != nil {
			return err
		}
		b, err := loose.Lister().List(sel)
		if err != nil {
			return err
		}
		if len(a) != 9 || len(b) != 9 || a[0].Data["k"] != "v" {
			return fmt.Errorf("typed %d, dynamic %d", len(a), len(b))
		}
		return nil
	})
	got := map[string]int{}
	for range 21 {
		select {
		case e := <-counts:
			got[e]++
		case <-time.After(10 * time.Second):
			t.Fatalf("only %v", got)
		}
	}
	if got["update"] != 10 || got["delete"] != 1 {
		t.Errorf("events: %v", got)
	}
}

// TestWatchList: a streaming list sends what is there, then the bookmark that ends it.
func TestWatchList(t *testing.T) {
	ns := namespace(t, "watchlist")
	maps := client(t).CoreV1().ConfigMaps(ns)
	for i := range 5 {
		if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m", i), Labels: map[string]string{"mine": "1"}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	yes := true
	w, err := maps.Watch(t.Context(), metav1.ListOptions{LabelSelector: "mine=1", SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	added := 0
	for e := range w.ResultChan() {
		m := e.Object.(*corev1.ConfigMap)
		if e.Type == watch.Added {
			added++
		}
		if e.Type == watch.Bookmark && m.Annotations[metav1.InitialEventsAnnotationKey] == "true" {
			break
		}
	}
	if added != 5 {
		t.Errorf("%d objects before the bookmark, want 5", added)
	}
}

// TestLeaderElection: one of three leads, and each leads once when its predecessor
// lets go.
func TestLeaderElection(t *testing.T) {
	ns := namespace(t, "election")
	c := client(t)
	led := make(chan string)
	stops := map[string]context.CancelFunc{}
	for i := range 3 {
		id := fmt.Sprint("candidate-", i)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stops[id] = cancel
		le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:          &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: ns, Name: "lead"}, Client: c.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: id}},
			LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 100 * time.Millisecond, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) { led <- id }, OnStoppedLeading: func() {}},
		})
		if err != nil {
			t.Fatal(err)
		}
		go le.Run(ctx)
	}
	seen := map[string]bool{}
	for range 3 {
		select {
		case id := <-led:
			if seen[id] {
				t.Errorf("%s leads again", id)
			}
			seen[id] = true
			stops[id]()
		case <-time.After(20 * time.Second):
			t.Fatalf("nobody leads after %v", seen)
		}
	}
}

// TestScaleAndMapping: discovery, REST mapping, and the scale client on top of both.
func TestScaleAndMapping(t *testing.T) {
	ns := namespace(t, "scale")
	disco, err := discovery.NewDiscoveryClientForConfig(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	if _, lists, err := disco.ServerGroupsAndResources(); err != nil || len(lists) < 20 {
		t.Fatalf("%d group versions, %v", len(lists), err)
	}
	if _, err := disco.OpenAPISchema(); err != nil {
		t.Error(err)
	}
	if paths, err := disco.OpenAPIV3().Paths(); err != nil || paths["apis/apps/v1"] == nil {
		t.Errorf("OpenAPI v3: %d paths, %v", len(paths), err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))
	mapping, err := mapper.RESTMapping(schema.GroupKind{Group: "apps", Kind: "Deployment"})
	if err != nil || mapping.Resource.Resource != "deployments" || mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		t.Fatalf("mapping %v, %v", mapping, err)
	}
	labels := map[string]string{"app": "scaled"}
	zero := int32(0)
	if _, err := client(t).AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "scaled"}, Spec: appsv1.DeploymentSpec{Replicas: &zero,
		Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: shared.image}}}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := scale.NewForConfig(shared.config, mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(disco))
	if err != nil {
		t.Fatal(err)
	}
	gr := mapping.Resource.GroupResource()
	now, err := s.Scales(ns).Get(t.Context(), gr, "scaled", metav1.GetOptions{})
	if err != nil || now.Status.Selector != "app=scaled" {
		t.Fatalf("scale %v, %v", now, err)
	}
	now.Spec.Replicas, now.ResourceVersion = 1, "" // the Deployment's own changes meanwhile
	if now, err = s.Scales(ns).Update(t.Context(), gr, now, metav1.UpdateOptions{}); err != nil || now.Spec.Replicas != 1 {
		t.Errorf("scale %v, %v", now, err)
	}
	if _, err := s.Scales(ns).Patch(t.Context(), mapping.Resource, "scaled", types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}

// TestDynamicAndMetadata: the dynamic client's verbs, and lists of metadata alone.
func TestDynamicAndMetadata(t *testing.T) {
	ns := namespace(t, "dynamic")
	gvr := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	dyn, err := dynamic.NewForConfig(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	r := dyn.Resource(gvr).Namespace(ns)
	m := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "m", "labels": map[string]any{"mine": "1"}}, "data": map[string]any{"k": "v"}}}
	if _, err := r.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	applied, err := r.Apply(t.Context(), "m", &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "m"}, "data": map[string]any{"l": "w"}}},
		metav1.ApplyOptions{FieldManager: "dynamic"})
	if err != nil {
		t.Fatal(err)
	}
	if data, _, _ := unstructured.NestedStringMap(applied.Object, "data"); len(data) != 2 {
		t.Errorf("data %v", data)
	}
	md, err := metadata.NewForConfig(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := md.Resource(gvr).Namespace(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "mine=1", Limit: 1})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "m" {
		t.Errorf("metadata %v, %v", list, err)
	}
	if err := r.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "mine=1"}); err != nil {
		t.Error(err)
	}
	if left, err := r.List(t.Context(), metav1.ListOptions{LabelSelector: "mine=1"}); err != nil || len(left.Items) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}
