package crd_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/kit/pki"
)

// converter is a conversion webhook between v1 (spec.host, spec.port) and v2
// (spec.address). It counts its calls.
type converter struct {
	calls  atomic.Int32
	broken atomic.Bool
}

func (c *converter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.calls.Add(1)
	var review struct {
		APIVersion, Kind string
		Request          struct {
			UID               string
			DesiredAPIVersion string
			Objects           []map[string]any
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	result := map[string]any{"status": "Success"}
	if c.broken.Load() {
		result = map[string]any{"status": "Failure", "message": "out of order"}
	}
	for _, o := range review.Request.Objects {
		o["apiVersion"] = review.Request.DesiredAPIVersion
		spec, _ := o["spec"].(map[string]any)
		if address, ok := spec["address"].(string); ok {
			host, port, _ := strings.Cut(address, ":")
			o["spec"] = map[string]any{"host": host, "port": port}
		} else {
			o["spec"] = map[string]any{"address": fmt.Sprint(spec["host"], ":", spec["port"])}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": review.APIVersion, "kind": review.Kind,
		"response": map[string]any{"uid": review.Request.UID, "result": result, "convertedObjects": review.Request.Objects}})
}

// A webhook converts what is stored in another version, a list in one call; its
// failure is told.
func TestConversionWebhook(t *testing.T) {
	ca, err := pki.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Server("hook", nil, []string{"hook.a.svc"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	hook := &converter{}
	srv := httptest.NewUnstartedServer(hook)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c := start(t, apitest.Options{Resolve: func(namespace, name string, port int32) (string, error) {
		if namespace != "a" || name != "hook" || port != 9443 {
			return "", fmt.Errorf("no service %s/%s:%d", namespace, name, port)
		}
		return srv.Listener.Addr().String(), nil
	}})
	const two = `
- {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {host: {type: string}, port: {type: string}}}}}}}
- {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {address: {type: string}}}}}}}
`
	for _, review := range []string{"v1", "v1beta1"} {
		t.Run(review, func(t *testing.T) {
			d := definition(t, two)
			path, port := "/convert", int32(9443)
			d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
				ConversionReviewVersions: []string{"v99", review},
				ClientConfig: &apiextensionsv1.WebhookClientConfig{CABundle: ca.PEM,
					Service: &apiextensionsv1.ServiceReference{Namespace: "a", Name: "hook", Path: &path, Port: &port}},
			}}
			c.establish(t, d)
			ctx := t.Context()
			for _, name := range []string{"x", "x2"} {
				if _, err := c.foos("v1").Create(ctx, foo(t, "v1", name, "spec: {host: h, port: '1'}"), metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if n := hook.calls.Load(); n != 0 {
				t.Errorf("%d calls for the stored version", n)
			}
			l, err := c.foos("v2").List(ctx, metav1.ListOptions{})
			if err != nil || len(l.Items) != 2 || asJSON(t, l.Items[1].Object["spec"]) != `{"address":"h:1"}` || hook.calls.Load() != 1 {
				t.Errorf("list: %v %v after %d calls", l, err, hook.calls.Load())
			}
			if _, err := c.foos("v2").Patch(ctx, "x", "application/merge-patch+json", []byte(`{"spec":{"address":"k:2"}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			obj, err := c.foos("v1").Get(ctx, "x", metav1.GetOptions{})
			if err != nil || asJSON(t, obj.Object["spec"]) != `{"host":"k","port":"2"}` {
				t.Errorf("after the patch: %v %v", obj, err)
			}
			hook.broken.Store(true)
			_, err = c.foos("v2").Create(ctx, foo(t, "v2", "z", "spec: {address: 'a:3'}"), metav1.CreateOptions{})
			if want := "conversion webhook for stable.example.com/v2, Kind=Foo failed: out of order"; message(err) != want {
				t.Errorf("failure: %v\nwant %s", err, want)
			}
			hook.broken.Store(false)
			w := c.watchFoos(t)
			if err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Delete(ctx, d.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			for range w {
			}
			hook.calls.Store(0)
		})
	}
}
