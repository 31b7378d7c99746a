package hooks_test

import (
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
)

// Subresources with a body of their own, connections among them, are asked about.
func TestSubresources(t *testing.T) {
	b := serve(t, map[string]answer{"/ask": allow, "/deny": deny})
	c := start(t)
	ctx := t.Context()
	for _, sa := range []string{"default", "other"} {
		if _, err := c.CoreV1().ServiceAccounts("ns").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: sa}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.CoreV1().Pods("ns").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x"}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	configure(t, c, "asked", b.validating("/ask", core("*/*", admv1.OperationAll)))
	configure(t, c, "denied", b.validating("/deny", core("pods/exec", admv1.Connect)))
	for _, q := range []struct {
		resource, name, subresource, body, kind string
		op                                      admissionv1.Operation
	}{
		{"pods", "p", "binding", `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"p"},"target":{"kind":"Node","name":"n"}}`, "Binding", admissionv1.Create},
		{"serviceaccounts", "default", "token", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"audiences":["x"]}}`, "TokenRequest", admissionv1.Create},
		{"pods", "p", "exec", "", "PodExecOptions", admissionv1.Connect},
		{"pods", "p", "eviction", `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"p"}}`, "Eviction", admissionv1.Create},
	} {
		r := c.CoreV1().RESTClient().Post().Namespace("ns").Resource(q.resource).Name(q.name).SubResource(q.subresource)
		if q.subresource == "exec" {
			r = r.Param("command", "true").Param("container", "c")
		}
		err := r.Body([]byte(q.body)).Do(ctx).Error()
		if denied := err != nil && strings.Contains(err.Error(), "not today"); denied != (q.subresource == "exec") || err != nil && !denied {
			t.Errorf("%s: %v", q.subresource, err)
		}
		got := b.last(t, "/ask")
		if got.Operation != q.op || got.SubResource != q.subresource || got.Kind.Kind != q.kind || got.RequestKind.Kind != q.kind || got.Resource.Resource != q.resource || !strings.Contains(string(got.Object.Raw), `"kind":"`+q.kind) {
			t.Errorf("%s: the webhook was asked %s %s/%s about %s", q.subresource, got.Operation, got.Resource.Resource, got.SubResource, got.Object.Raw)
		}
	}
}

// Questions about users and permissions are asked about too, also of namespaces that
// do not exist; a webhook can change them.
func TestReviews(t *testing.T) {
	b := serve(t, map[string]answer{"/ask": allow, "/deny": deny, "/change": patch(`[{"op":"replace","path":"/spec/user","value":"jane"}]`)})
	s := apitest.Start(t, apitest.Options{})
	c, ctx := s.Client(t), t.Context()
	of := func(resource string) []admv1.RuleWithOperations {
		return rule([]string{"authorization.k8s.io", "authentication.k8s.io"}, []string{"v1"}, []string{resource}, admv1.Create)
	}
	configure(t, c, "asked", b.validating("/ask", of("*")))
	configure(t, c, "denied", b.validating("/deny", of("selfsubjectreviews")))
	configureMutating(t, c, "changed", b.mutating("/change", of("subjectaccessreviews")))
	ask := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "joe", NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: "/", Verb: "get"}}}
	got, err := c.AuthorizationV1().SubjectAccessReviews().Create(ctx, ask, metav1.CreateOptions{})
	if err != nil || got.Spec.User != "jane" {
		t.Errorf("changed question %v, %v", got, err)
	}
	if q := b.last(t, "/ask"); q.Resource.Resource != "subjectaccessreviews" || q.Kind.Kind != "SubjectAccessReview" || q.Operation != admissionv1.Create || !strings.Contains(string(q.Object.Raw), `"user":"jane"`) {
		t.Errorf("the webhook was asked %s %v about %s", q.Operation, q.Resource, q.Object.Raw)
	}
	local := &authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: "nowhere"},
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "joe", ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "nowhere", Verb: "get", Resource: "pods"}}}
	if _, err := c.AuthorizationV1().LocalSubjectAccessReviews("nowhere").Create(ctx, local, metav1.CreateOptions{}); err != nil {
		t.Errorf("a question about a namespace that does not exist: %v", err)
	}
	if _, err := c.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("a question that a webhook refuses: %v", err)
	}
}

// A write costs next to nothing more when a hundred webhooks are for others.
func BenchmarkUnconcerned(b *testing.B) {
	for _, n := range []int{0, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := apitest.Start(b, apitest.Options{Unwatched: true})
			s.Namespace(b, "ns")
			c := s.Client(b)
			none := &backend{URL: "https://127.0.0.1:1"}
			for i := range n {
				cfg := &admv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", i)},
					Webhooks: []admv1.ValidatingWebhook{none.validating("/x", core("pods", admv1.OperationAll))}}
				if _, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(b.Context(), cfg, metav1.CreateOptions{}); err != nil {
					b.Fatal(err)
				}
			}
			m, err := c.CoreV1().ConfigMaps("ns").Create(b.Context(), configMap("x", nil), metav1.CreateOptions{})
			if err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				m.Data = map[string]string{"n": fmt.Sprint(i)}
				if m, err = c.CoreV1().ConfigMaps("ns").Update(b.Context(), m, metav1.UpdateOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
