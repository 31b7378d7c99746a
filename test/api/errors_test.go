package api

import (
	"net/http"
	"strings"
	"testing"

	"knarr.dev/knarr/apiserver/apitest"
)

// TestRefusals compares whole bodies with those of Kubernetes.
func TestRefusals(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	admin, bob := newPeer(t, s.Admin(t)), newPeer(t, s.As(t, "bob"))
	status := func(details, message, reason, code string) string {
		return `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"` + message + `","reason":"` + reason + `",` + details + `"code":` + code + `}`
	}
	const cms = "/api/v1/namespaces/default/configmaps"
	for _, c := range []struct {
		name         string
		as           *peer
		method, path string
		body         string
		media        string
		accept       string
		code         int
		want         string
	}{
		{"not found", admin, "GET", cms + "/no", "", "", "", 404, status(`"details":{"name":"no","kind":"configmaps"},`, `configmaps \"no\" not found`, "NotFound", "404")},
		{"not found in a group", admin, "GET", "/apis/apps/v1/namespaces/default/deployments/no", "", "", "", 404, status(`"details":{"name":"no","group":"apps","kind":"deployments"},`, `deployments.apps \"no\" not found`, "NotFound", "404")},
		{"unknown resource", admin, "GET", "/api/v1/unicorns", "", "", "", 404, status(`"details":{},`, "the server could not find the requested resource", "NotFound", "404")},
		{"unknown group", admin, "GET", "/apis/no.such/v1/unicorns", "", "", "", 404, "404 page not found"},
		{"unknown path", admin, "GET", "/no/such", "", "", "", 404, "404 page not found"},
		{"cluster kind in a namespace", admin, "GET", "/api/v1/namespaces/default/nodes", "", "", "", 404, status(`"details":{},`, "the server could not find the requested resource", "NotFound", "404")},
		{"post to a name", admin, "POST", cms + "/x", "{}", "application/json", "", 405, status(`"details":{},`, "the server does not allow this method on the requested resource", "MethodNotAllowed", "405")},
		{"post across namespaces", admin, "POST", "/api/v1/configmaps", "{}", "application/json", "", 405, status(`"details":{},`, "the server does not allow this method on the requested resource", "MethodNotAllowed", "405")},
		{"delete across namespaces", admin, "DELETE", "/api/v1/configmaps", "", "", "", 405, status(`"details":{},`, "the server does not allow this method on the requested resource", "MethodNotAllowed", "405")},
		{"delete of a status", admin, "DELETE", "/api/v1/namespaces/default/status", "", "", "", 405, status(`"details":{},`, "the server does not allow this method on the requested resource", "MethodNotAllowed", "405")},
		{"put to a collection", admin, "PUT", cms, "{}", "application/json", "", 405, status(`"details":{},`, "the server does not allow this method on the requested resource", "MethodNotAllowed", "405")},
		{"forbidden list", bob, "GET", cms, "", "", "", 403, status(`"details":{"kind":"configmaps"},`, `configmaps is forbidden: User \"bob\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"`, "Forbidden", "403")},
		{"forbidden get", bob, "GET", "/api/v1/nodes/n", "", "", "", 403, status(`"details":{"name":"n","kind":"nodes"},`, `nodes \"n\" is forbidden: User \"bob\" cannot get resource \"nodes\" in API group \"\" at the cluster scope`, "Forbidden", "403")},
		{"forbidden subresource", bob, "GET", "/api/v1/namespaces/default/pods/p/log", "", "", "", 403, status(`"details":{"name":"p","kind":"pods"},`, `pods \"p\" is forbidden: User \"bob\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"default\"`, "Forbidden", "403")},
		{"forbidden path", bob, "GET", "/metrics", "", "", "", 403, status(`"details":{},`, `forbidden: User \"bob\" cannot get path \"/metrics\"`, "Forbidden", "403")},
		{"not acceptable", admin, "GET", cms, "", "", "text/html", 406, status(`"details":{},`, "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor", "NotAcceptable", "406")},
		{"unknown body", admin, "POST", cms, "x", "text/plain", "", 415, status(`"details":{},`, "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor", "UnsupportedMediaType", "415")},
		{"another kind", admin, "POST", cms, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}`, "application/json", "", 400, status("", `Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (v1.ConfigMap): unknown conversion`, "BadRequest", "400")},
		{"no name", admin, "POST", cms, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{}}`, "application/json", "", 422, status(`"details":{"kind":"ConfigMap","causes":[{"reason":"FieldValueRequired","message":"Required value: name or generateName is required","field":"metadata.name"}]},`, `ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required`, "Invalid", "422")},
		{"absent namespace", admin, "POST", "/api/v1/namespaces/no/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}`, "application/json", "", 404, status(`"details":{"name":"no","kind":"namespaces"},`, `namespaces \"no\" not found`, "NotFound", "404")},
		{"wrong namespace", admin, "POST", cms, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"y"}}`, "application/json", "", 400, status("", "the namespace of the provided object does not match the namespace sent on the request", "BadRequest", "400")},
		{"resource version at create", admin, "POST", cms, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","resourceVersion":"5"}}`, "application/json", "", 500, ""},
		{"force without apply", admin, "PATCH", cms + "/x?force=true", `{}`, "application/merge-patch+json", "", 422, status(`"details":{"group":"meta.k8s.io","kind":"PatchOptions","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: may not be specified for non-apply patch","field":"force"}]},`, `PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch`, "Invalid", "422")},
		{"apply without a manager", admin, "PATCH", cms + "/x", `{}`, "application/apply-patch+yaml", "", 422, status(`"details":{"group":"meta.k8s.io","kind":"PatchOptions","causes":[{"reason":"FieldValueRequired","message":"Required value: is required for apply patch","field":"fieldManager"}]},`, `PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch`, "Invalid", "422")},
		{"match without version", admin, "GET", cms + "?resourceVersionMatch=Exact", "", "", "", 422, status(`"details":{"group":"meta.k8s.io","kind":"ListOptions","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided","field":"resourceVersionMatch"}]},`, `ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided`, "Invalid", "422")},
		{"initial events without match", admin, "GET", cms + "?watch=1&sendInitialEvents=true", "", "", "", 422, status(`"details":{"group":"meta.k8s.io","kind":"ListOptions","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan","field":"resourceVersionMatch"}]},`, `ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan`, "Invalid", "422")},
		{"unknown field selector", admin, "GET", cms + "?fieldSelector=spec.x%3D1", "", "", "", 400, status("", `Unable to find \"/v1, Resource=configmaps\" that match label selector \"\", field selector \"spec.x=1\": field label not supported: spec.x`, "BadRequest", "400")},
		{"dry run of nothing", admin, "POST", cms + "?dryRun=No", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}`, "application/json", "", 422, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h []string
			if c.media != "" {
				h = append(h, "Content-Type", c.media)
			}
			if c.accept != "" {
				h = append(h, "Accept", c.accept)
			}
			a := c.as.do(t, c.method, c.path, c.body, h...)
			if c.name == "resource version at create" { // Kubernetes answers 500 here; a client's mistake is 400
				c.code = http.StatusBadRequest
			}
			if a.code != c.code {
				t.Errorf("code %d, want %d", a.code, c.code)
			}
			if got := strings.TrimSuffix(a.body, "\n"); c.want != "" && got != c.want {
				t.Errorf("body\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestUnauthenticated(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	cfg := s.Admin(t)
	cfg.CertData, cfg.KeyData = nil, nil
	nobody := newPeer(t, cfg)
	want := `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`
	if a := nobody.do(t, "GET", "/api/v1/pods", ""); a.code != 401 || strings.TrimSpace(a.body) != want {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := nobody.do(t, "GET", "/api/v1/pods", "", "Authorization", "Bearer nonsense"); a.code != 401 {
		t.Errorf("a bad token: %d %s", a.code, a.body)
	}
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/version"} {
		if a := nobody.do(t, "GET", path, ""); a.code != 200 {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
	}
}
