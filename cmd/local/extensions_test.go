package local_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/clock"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/cmd/local"
	"knarr.dev/knarr/controller/engine"
	"knarr.dev/knarr/controller/garbagecollector"
	"knarr.dev/knarr/controller/namespace"
)

var (
	flunders    = client.Resource{Group: "wardle.example.com", Version: "v1", Resource: "flunders"}
	definitions = client.Resource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	apiServices = client.Resource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
)

// aggregated is a server with an extension server, which is another one of ours
// that has Flunders by a definition.
type aggregated struct {
	*apitest.Server
	here, there dynamic.Interface
}

func startAggregated(t *testing.T) *aggregated {
	t.Helper()
	a := &aggregated{}
	far := apitest.Start(t, apitest.Options{})
	token := far.AdminToken(t)
	ext := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+token)
		far.Handler.ServeHTTP(w, r)
	}))
	t.Cleanup(ext.Close)
	a.Server = apitest.Start(t, apitest.Options{Extensions: true, Resolve: func(_, name string, _ int32) (string, error) {
		if name != "wardle" {
			return "", errors.New("no such service")
		}
		return ext.Listener.Addr().String(), nil
	}})
	var err error
	if a.here, err = dynamic.NewForConfig(a.Admin(t)); err != nil {
		t.Fatal(err)
	}
	if a.there, err = dynamic.NewForConfig(far.Admin(t)); err != nil {
		t.Fatal(err)
	}
	a.create(t, a.there, definitions, "", `{metadata: {name: flunders.wardle.example.com}, spec: {group: wardle.example.com, scope: Namespaced,
names: {plural: flunders, singular: flunder, kind: Flunder, listKind: FlunderList},
versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]}}`)
	a.await(t, a.there, definitions, "flunders.wardle.example.com", "Established", "True")
	far.Namespace(t, "ns")
	a.Namespace(t, "ns")
	a.Namespace(t, "kept")
	if _, err := a.Client(t).CoreV1().Services("kept").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "wardle"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a.ready(t, true)
	a.create(t, a.here, apiServices, "", `{metadata: {name: v1.wardle.example.com}, spec: {group: wardle.example.com, version: v1,
groupPriorityMinimum: 2000, versionPriority: 200, insecureSkipTLSVerify: true, service: {namespace: kept, name: wardle}}}`)
	a.await(t, a.here, apiServices, "v1.wardle.example.com", "Available", "True")
	return a
}

// ready tells whether the extension server is.
func (a *aggregated) ready(t *testing.T, ready bool) {
	t.Helper()
	port := int32(443)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "wardle", Labels: map[string]string{discoveryv1.LabelServiceName: "wardle"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}}
	c := a.Client(t).DiscoveryV1().EndpointSlices("kept")
	_, err := c.Create(t.Context(), slice, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = c.Update(t.Context(), slice, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// control runs controllers until the test ends.
func (a *aggregated) control(t *testing.T, list ...engine.Controller) *local.Client {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ext := local.NewExtensions(ctx, a.Aggregate, a.Admin(t), log)
	l := &local.Server{Registry: a.Registry, Authz: a.Authz, Tokens: a.Tokens, Now: time.Now, Extensions: ext}
	c := l.As(auth.Component("system:kube-controller-manager", auth.GroupMasters))
	done := make(chan error, 1)
	go func() { done <- engine.Run(ctx, c, nil, clock.RealClock{}, log, list) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		ext.Close()
	})
	return c
}

func (a *aggregated) create(t *testing.T, c dynamic.Interface, r client.Resource, ns, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	kind := map[client.Resource]string{definitions: "CustomResourceDefinition", apiServices: "APIService", flunders: "Flunder"}[r]
	u.SetAPIVersion(r.GroupVersion().String())
	u.SetKind(kind)
	out, err := c.Resource(r).Namespace(ns).Create(t.Context(), u, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// await waits for a condition of an object; "": until it is gone.
func (a *aggregated) await(t *testing.T, c dynamic.Interface, r client.Resource, name, condition, status string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w, err := c.Resource(r).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if e.Type == watch.Deleted {
			if condition != "" {
				t.Fatalf("%s %s is gone", r.Resource, name)
			}
			return ""
		}
		list, _, _ := unstructured.NestedSlice(e.Object.(*unstructured.Unstructured).Object, "status", "conditions")
		for _, v := range list {
			if c := v.(map[string]any); c["type"] == condition && c["status"] == status {
				return c["message"].(string)
			}
		}
	}
	t.Fatalf("%s %s: no condition %s=%s within 20 s", r.Resource, name, condition, status)
	return ""
}

// gone waits until a flunder is gone from the extension server.
func (a *aggregated) gone(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := a.there.Resource(flunders).Namespace("ns")
	l, err := c.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(l.Items, func(u unstructured.Unstructured) bool { return u.GetName() == name }) {
		return
	}
	w, err := c.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: l.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if e.Type == watch.Deleted {
			return
		}
	}
	t.Fatalf("flunder %s is still there after 20 s", name)
}

// What an extension server serves is deleted with its namespace. While it does not
// answer, the namespace says so and stays.
func TestNamespaceOfExtension(t *testing.T) {
	a := startAggregated(t)
	a.create(t, a.here, flunders, "ns", "{metadata: {name: f}}")
	a.ready(t, false)
	a.await(t, a.here, apiServices, "v1.wardle.example.com", "Available", "False")
	a.control(t, namespace.New())
	if err := a.Client(t).CoreV1().Namespaces().Delete(t.Context(), "ns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	namespaces := client.Namespaces
	const want = "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: wardle.example.com/v1: "
	if got := a.await(t, a.here, namespaces, "ns", "NamespaceDeletionDiscoveryFailure", "True"); !strings.HasPrefix(got, want) {
		t.Errorf("condition %q, want %q…", got, want)
	}
	a.ready(t, true)
	a.await(t, a.here, namespaces, "ns", "", "")
	if _, err := a.there.Resource(flunders).Namespace("ns").Get(t.Context(), "f", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is gone, its flunder is not: %v", err)
	}
}

// Owners and dependents may be here and at the extension server.
func TestGarbageOfExtension(t *testing.T) {
	a := startAggregated(t)
	ctx, cms := t.Context(), a.Client(t).CoreV1().ConfigMaps("ns")
	owner, err := cms.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a.create(t, a.here, flunders, "ns", `{metadata: {name: owned, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: owner, uid: `+string(owner.UID)+`}]}}`)
	boss := a.create(t, a.here, flunders, "ns", "{metadata: {name: boss}}")
	for name, uid := range map[string]types.UID{"owned": boss.GetUID(), "lost": "none"} {
		if _, err := cms.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "wardle.example.com/v1", Kind: "Flunder", Name: "boss", UID: uid}}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w, err := cms.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	deleted := func(name string) {
		t.Helper()
		timeout := time.NewTimer(20 * time.Second)
		defer timeout.Stop()
		for {
			select {
			case e := <-w.ResultChan():
				if e.Type == watch.Deleted && e.Object.(*corev1.ConfigMap).Name == name {
					return
				}
			case <-timeout.C:
				t.Fatalf("config map %s is still there after 20 s", name)
			}
		}
	}
	a.control(t, garbagecollector.New())
	deleted("lost")
	if err := cms.Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	a.gone(t, "owned")
	if err := a.here.Resource(flunders).Namespace("ns").Delete(ctx, "boss", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	deleted("owned")
}
