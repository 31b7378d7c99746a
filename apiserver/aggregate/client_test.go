package aggregate_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiregv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"knarr.dev/knarr/apiserver/apitest"
)

// The typed client works with protobuf and JSON, and with server-side apply.
func TestTypedClient(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	for _, media := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		cfg := s.Admin(t)
		cfg.ContentType, cfg.AcceptContentTypes = media, media
		c, err := clientset.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, api := t.Context(), c.ApiregistrationV1().APIServices()
		made, err := api.Create(ctx, &apiregv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.x.example.com", Labels: map[string]string{"a": "b"}},
			Spec: apiregv1.APIServiceSpec{Group: "x.example.com", Version: "v1", GroupPriorityMinimum: 10, VersionPriority: 10, InsecureSkipTLSVerify: true,
				Service: &apiregv1.ServiceReference{Namespace: "none", Name: "none"}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("%s: %v", media, err)
		}
		if *made.Spec.Service.Port != 443 || len(made.ManagedFields) == 0 {
			t.Errorf("%s: made %+v", media, made)
		}
		list, err := api.List(ctx, metav1.ListOptions{LabelSelector: "a=b"})
		if err != nil || len(list.Items) != 1 || list.Items[0].Spec.Group != "x.example.com" {
			t.Errorf("%s: listed %v, %v", media, list, err)
		}
		applied := []byte(`{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1.x.example.com","labels":{"c":"d"}}}`)
		o, err := api.Patch(ctx, "v1.x.example.com", types.ApplyPatchType, applied, metav1.PatchOptions{FieldManager: "me"})
		if err != nil || o.Labels["c"] != "d" || o.Labels["a"] != "b" {
			t.Errorf("%s: applied %v, %v", media, o, err)
		}
		if o, err = api.Patch(ctx, "v1.x.example.com", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"e":"f"}}}`), metav1.PatchOptions{}); err != nil || o.Labels["e"] != "f" {
			t.Errorf("%s: patched %v, %v", media, o, err)
		}
		status := []byte(`{"status":{"conditions":[{"type":"Odd","status":"True","reason":"R","message":"M","lastTransitionTime":"2026-01-02T03:04:05Z"}]}}`)
		if o, err = api.Patch(ctx, "v1.x.example.com", types.MergePatchType, status, metav1.PatchOptions{}, "status"); err != nil || len(o.Status.Conditions) == 0 {
			t.Errorf("%s: status %v, %v", media, o, err)
		}
		if err := api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "a=b"}); err != nil {
			t.Errorf("%s: %v", media, err)
		}
	}
}
