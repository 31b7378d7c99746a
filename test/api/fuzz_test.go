package api

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/apitest"
)

// target is a server that fuzzing asks without a network in between.
type target struct{ h http.Handler }

func newTarget(f *testing.F) *target {
	s := apitest.Start(f, apitest.Options{Unwatched: true})
	token := s.AdminToken(f)
	must(s.Client(f).CoreV1().ConfigMaps("default").Create(f.Context(), configMap("c", "a", "1"), metav1.CreateOptions{}))(f)
	must(s.Client(f).AppsV1().Deployments("default").Create(f.Context(), deployment("d", 1), metav1.CreateOptions{}))(f)
	return &target{h: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+token)
		s.Handler.ServeHTTP(w, r)
	})}
}

// ask sends a request whose answer may be any but a failure of the server.
// Writes are dry runs: what one input does must not depend on others.
func (x *target) ask(t *testing.T, method, path, query, media string, body []byte) {
	t.Helper()
	u := &url.URL{Scheme: "https", Host: "x", Path: path, RawQuery: query}
	r := (&http.Request{Method: method, URL: u, Host: "x", Header: http.Header{"Content-Type": {media}}, Body: io.NopCloser(strings.NewReader(string(body))), ContentLength: int64(len(body)), RequestURI: u.RequestURI()}).WithContext(t.Context())
	w := httptest.NewRecorder()
	x.h.ServeHTTP(w, r)
	if w.Code >= 500 && w.Code != http.StatusGatewayTimeout {
		t.Errorf("%s %s %s %q answers %d %s", method, u, media, body, w.Code, w.Body)
	}
}

func FuzzManifest(f *testing.F) {
	x := newTarget(f)
	f.Add(uint8(0), []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"b"}}`))
	f.Add(uint8(0), []byte(`{"metadata":{"name":"x","labels":{"a":null},"ownerReferences":[{}],"managedFields":[{"fieldsV1":{"f:x":1}}]}}`))
	f.Add(uint8(1), []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: &a {name: x}\ndata: *a\n"))
	f.Add(uint8(1), []byte("- a\n- [b"))
	f.Add(uint8(2), []byte("k8s\x00\x0a\x0d\x0a\x02v1\x12\x09ConfigMap\x12\x05\x0a\x03\x0a\x01x\x1a\x00\x22\x00"))
	f.Add(uint8(2), []byte("k8s\x00\xff\xff"))
	f.Fuzz(func(t *testing.T, media uint8, body []byte) {
		m := []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}[media%3]
		for _, path := range []string{"/api/v1/namespaces/default/configmaps", "/apis/apps/v1/namespaces/default/deployments", "/api/v1/namespaces/default/services", "/api/v1/namespaces/default/pods"} {
			x.ask(t, "POST", path, "dryRun=All&fieldValidation=Strict&fieldManager=f", m, body)
			x.ask(t, "POST", path, "dryRun=All&fieldManager=f", m, body)
		}
		x.ask(t, "DELETE", "/api/v1/namespaces/default/configmaps/c", "dryRun=All", m, body)
	})
}

func FuzzPatch(f *testing.F) {
	x := newTarget(f)
	f.Add(uint8(0), []byte(`[{"op":"replace","path":"/spec/replicas","value":3},{"op":"copy","from":"/spec","path":"/metadata/x"}]`))
	f.Add(uint8(1), []byte(`{"spec":{"replicas":null,"template":{"spec":{"containers":null}}}}`))
	f.Add(uint8(2), []byte(`{"spec":{"template":{"spec":{"$setElementOrder/containers":[{"name":"c"}],"containers":[{"name":"c","$patch":"replace"}]}}}}`))
	f.Add(uint8(2), []byte(`{"metadata":{"$patch":"delete"},"$retainKeys":[1]}`))
	f.Add(uint8(3), []byte(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":2}}`))
	f.Add(uint8(3), []byte("apiVersion: apps/v1\nkind: Deployment\nspec: [1]\n"))
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		m := []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}[kind%4]
		for _, path := range []string{"/apis/apps/v1/namespaces/default/deployments/d", "/apis/apps/v1/namespaces/default/deployments/d/status", "/api/v1/namespaces/default/configmaps/c"} {
			x.ask(t, "PATCH", path, "dryRun=All&fieldManager=f", m, body)
		}
	})
}

func FuzzQuery(f *testing.F) {
	x := newTarget(f)
	f.Add("a in (b,c),!d", "metadata.name=c,metadata.namespace!=x", "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NSwic3RhcnQiOiJjXHUwMDAwIn0", "1")
	f.Add("(", "=", "e30", "-1")
	f.Add("a=b,a!=b,c>1", `metadata.name=\,`, "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiLi4vIn0", "9223372036854775808")
	f.Fuzz(func(t *testing.T, labels, fields, token, rv string) {
		for _, q := range []url.Values{
			{"labelSelector": {labels}}, {"fieldSelector": {fields}}, {"continue": {token}, "limit": {"1"}},
			{"labelSelector": {labels}, "fieldSelector": {fields}, "limit": {rv}},
			{"resourceVersion": {"0"}, "resourceVersionMatch": {rv}},
		} {
			x.ask(t, "GET", "/api/v1/configmaps", q.Encode(), "", nil)
		}
		x.ask(t, "DELETE", "/api/v1/namespaces/default/configmaps", url.Values{"dryRun": {"All"}, "labelSelector": {labels}, "propagationPolicy": {fields}, "gracePeriodSeconds": {rv}}.Encode(), "", nil)
	})
}

func FuzzPath(f *testing.F) {
	x := newTarget(f)
	for _, p := range []string{"/", "/api", "/api/v1/namespaces/default/configmaps/c", "/apis/apps/v1/namespaces/default/deployments/d/scale", "/api/v1/namespaces/default/finalize", "/api/v1/watch/namespaces", "/api/v1/namespaces//pods", "/openapi/v3/apis/x", "//api//v1//", "/api/v1/namespaces/default/pods/p/exec", "/livez/x"} {
		f.Add(p, uint8(0))
	}
	f.Fuzz(func(t *testing.T, path string, method uint8) {
		if !strings.HasPrefix(path, "/") || strings.Contains(path, "watch") || strings.HasPrefix(path, "/livez") || strings.HasPrefix(path, "/readyz") || strings.HasPrefix(path, "/healthz") {
			return // watches stream; health may say 500
		}
		m := []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "FOO"}[method%8]
		x.ask(t, m, path, "dryRun=All", "application/merge-patch+json", []byte("{}"))
		x.ask(t, m, path, "dryRun=All", "application/json", []byte("{}"))
	})
}

// FuzzExpression gives CEL texts to everything that takes them: policies, match
// conditions of webhooks, and the rules of custom resources' schemas.
func FuzzExpression(f *testing.F) {
	x := newTarget(f)
	for _, e := range []string{"true", "object.spec.replicas <= 5", "has(self.a) ? self.a.size() > 3 : true", "object.metadata.labels.all(k, k.startsWith('a'))", "authorizer.group('').resource('pods').check('get').allowed()",
		"[1,2].map(x, x*x).exists(y, y == 4)", "quantity('1Gi').isGreaterThan(quantity('1Mi'))", "url('http://x').getHost() == 'x'", "'a'.matches('(a+)+$')", "(((((((", "self.a == oldSelf.a", "variables.x"} {
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := json.Marshal(text)
		if err != nil {
			return
		}
		e := string(b)
		for path, body := range map[string]string{
			"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies": `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"p"},"spec":{"matchConstraints":{"resourceRules":[{"apiGroups":["apps"],"apiVersions":["v1"],"operations":["CREATE"],"resources":["deployments"]}]},"variables":[{"name":"x","expression":` + e + `}],"validations":[{"expression":` + e + `,"messageExpression":` + e + `}]}}`,
			"/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies":   `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"MutatingAdmissionPolicy","metadata":{"name":"p"},"spec":{"reinvocationPolicy":"Never","matchConstraints":{"resourceRules":[{"apiGroups":["apps"],"apiVersions":["v1"],"operations":["CREATE"],"resources":["deployments"]}]},"mutations":[{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":` + e + `}}]}}`,
			"/apis/apiextensions.k8s.io/v1/customresourcedefinitions":           `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"foos.example.com"},"spec":{"group":"example.com","scope":"Namespaced","names":{"plural":"foos","singular":"foo","kind":"Foo","listKind":"FooList"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"a":{"type":"string","maxLength":9}},"x-kubernetes-validations":[{"rule":` + e + `}]}}}}}]}}`,
		} {
			x.ask(t, "POST", path, "dryRun=All", "application/json", []byte(body))
		}
	})
}
