package clients

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/go-logr/logr"
)

const siteCRD = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"sites.clients.knarr.dev"},
"spec":{"group":"clients.knarr.dev","scope":"Namespaced","names":{"plural":"sites","singular":"site","kind":"Site","listKind":"SiteList"},
"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{}},
"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"text":{"type":"string"}}},
"status":{"type":"object","properties":{"seen":{"type":"string"}}}}}}}]}}`

var siteKind = schema.GroupVersionKind{Group: "clients.knarr.dev", Version: "v1", Kind: "Site"}

const finalizer = "clients.knarr.dev/tidy"

// operator keeps a ConfigMap for each Site by server-side apply, writes the Site's
// status, and tidies up before a Site goes.
type operator struct {
	client ctrlclient.Client
	tidied atomic.Int32
}

func (o *operator) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	site := &unstructured.Unstructured{}
	site.SetGroupVersionKind(siteKind)
	if err := o.client.Get(ctx, req.NamespacedName, site); err != nil {
		return ctrl.Result{}, ctrlclient.IgnoreNotFound(err)
	}
	if site.GetDeletionTimestamp() != nil {
		if controllerutil.RemoveFinalizer(site, finalizer) {
			o.tidied.Add(1)
			return ctrl.Result{}, ctrlclient.IgnoreNotFound(o.client.Update(ctx, site))
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(site, finalizer) {
		return ctrl.Result{}, o.client.Update(ctx, site) // its event comes back here
	}
	text, _, _ := unstructured.NestedString(site.Object, "spec", "text")
	page := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": site.GetName(), "namespace": site.GetNamespace()}, "data": map[string]any{"text": text}}}
	if err := controllerutil.SetControllerReference(site, page, o.client.Scheme()); err != nil {
		return ctrl.Result{}, err
	}
	if err := o.client.Apply(ctx, ctrlclient.ApplyConfigurationFromUnstructured(page), ctrlclient.FieldOwner("operator"), ctrlclient.ForceOwnership); err != nil {
		return ctrl.Result{}, err
	}
	if seen, _, _ := unstructured.NestedString(site.Object, "status", "seen"); seen == text {
		return ctrl.Result{}, nil
	}
	before := site.DeepCopy()
	if err := unstructured.SetNestedField(site.Object, text, "status", "seen"); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, o.client.Status().Patch(ctx, site, ctrlclient.MergeFrom(before))
}

// TestOperator drives an operator built with controller-runtime: its cached client,
// leader election, server-side apply, finalizers, status and owner references.
func TestOperator(t *testing.T) {
	ns := namespace(t, "operator")
	logf.SetLogger(logr.Discard())
	if err := client(t).CoreV1().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
		SetHeader("Content-Type", "application/json").Body([]byte(siteCRD)).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	direct, err := ctrlclient.NewWithWatch(shared.config, ctrlclient.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the kind is served", func() error {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(siteKind)
		return direct.List(t.Context(), list)
	})
	ctx, cancel := context.WithCancel(t.Context())
	var managers []chan error
	defer func() {
		cancel()
		for _, m := range managers {
			if err := <-m; err != nil {
				t.Error(err)
			}
		}
	}()
	// Two replicas: one leads, the other takes over when the first ends.
	first, endFirst := context.WithCancel(ctx)
	defer endFirst()
	var ops []*operator
	for i, c := range []context.Context{first, ctx} {
		op, done, elected := startOperator(t, c, s, ns, fmt.Sprint("replica-", i))
		ops, managers = append(ops, op), append(managers, done)
		if i == 0 {
			<-elected
		}
	}
	site := func(name, text string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": name, "namespace": ns}, "spec": map[string]any{"text": text}}}
		u.SetGroupVersionKind(siteKind)
		return u
	}
	seen := func(name, text string) func(watch.Event) bool {
		return func(e watch.Event) bool {
			u, ok := e.Object.(*unstructured.Unstructured)
			if !ok || u.GetName() != name {
				return false
			}
			s, _, _ := unstructured.NestedString(u.Object, "status", "seen")
			return s == text
		}
	}
	await(t, direct, ns, "Site", "a has its status", seen("a", "one"), func() error { return direct.Create(ctx, site("a", "one")) })
	page := &corev1.ConfigMap{}
	if err := direct.Get(ctx, types.NamespacedName{Namespace: ns, Name: "a"}, page); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(page.Data, map[string]string{"text": "one"}) || len(page.OwnerReferences) != 1 || page.OwnerReferences[0].Kind != "Site" {
		t.Errorf("the page is %v, owned by %v", page.Data, page.OwnerReferences)
	}
	if m := page.ManagedFields; len(m) != 1 || m[0].Manager != "operator" || m[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("managed fields: %v", m)
	}
	// Somebody else's change is put right again.
	await(t, direct, ns, "ConfigMap", "the page is put right", func(e watch.Event) bool {
		m, ok := e.Object.(*corev1.ConfigMap)
		return ok && m.Name == "a" && e.Type == watch.Modified && m.Data["text"] == "one"
	}, func() error {
		changed := page.DeepCopy()
		changed.Data["text"] = "spoilt"
		return direct.Update(ctx, changed)
	})
	endFirst()
	await(t, direct, ns, "Site", "the second replica works", seen("b", "two"), func() error { return direct.Create(ctx, site("b", "two")) })
	await(t, direct, ns, "Site", "a is gone", func(e watch.Event) bool { return e.Type == watch.Deleted }, func() error { return direct.Delete(ctx, site("a", "")) })
	if n := ops[1].tidied.Load(); n != 1 {
		t.Errorf("the second replica tidied up %d times, want 1", n)
	}
	eventually(t, "the page of a is collected", func() error {
		if err := direct.Get(ctx, types.NamespacedName{Namespace: ns, Name: "a"}, page); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%v)", err)
		}
		return nil
	})
	await(t, direct, ns, "Site", "b is gone", func(e watch.Event) bool { return e.Type == watch.Deleted }, func() error { return direct.Delete(ctx, site("b", "")) })
}

func startOperator(t *testing.T, ctx context.Context, s *runtime.Scheme, ns, id string) (*operator, chan error, <-chan struct{}) {
	t.Helper()
	lease, renew, retry := 3*time.Second, 2*time.Second, 300*time.Millisecond
	m, err := ctrl.NewManager(shared.config, ctrl.Options{Scheme: s, Metrics: metricsserver.Options{BindAddress: "0"}, LeaderElection: true, LeaderElectionID: "operator",
		LeaderElectionNamespace: ns, LeaderElectionReleaseOnCancel: true, LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
		Cache: cache.Options{DefaultNamespaces: map[string]cache.Config{ns: {}}}})
	if err != nil {
		t.Fatal(err)
	}
	op := &operator{client: m.GetClient()}
	watched := &unstructured.Unstructured{}
	watched.SetGroupVersionKind(siteKind)
	if err := ctrl.NewControllerManagedBy(m).For(watched).Owns(&corev1.ConfigMap{}).Named(id).Complete(op); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	return op, done, m.Elected()
}
