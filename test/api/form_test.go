package api

import (
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/apiserver/apitest"
)

var deploymentsGVR = appsv1.SchemeGroupVersion.WithResource("deployments")

const tableAs = "application/json;as=Table;v=v1;g=meta.k8s.io"

func TestForms(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	p := newPeer(t, s.Admin(t))
	const one, list = "/api/v1/namespaces/default/configmaps/f", "/api/v1/namespaces/default/configmaps"
	must(s.Client(t).CoreV1().ConfigMaps("default").Create(t.Context(), configMap("f", "k", "<v>"), metav1.CreateOptions{}))(t)

	if a := p.do(t, "GET", one, ""); a.header.Get("Content-Type") != "application/json" || !strings.HasPrefix(a.body, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"f","namespace":"default","uid":"`) || !strings.HasSuffix(a.body, "}\n") || !strings.Contains(a.body, `\u003cv\u003e`) {
		t.Errorf("JSON: %q %s", a.header, a.body)
	}
	y := p.do(t, "GET", one, "", "Accept", "application/yaml")
	var o map[string]any
	if err := yaml.Unmarshal([]byte(y.body), &o); err != nil || y.header.Get("Content-Type") != "application/yaml" || !strings.HasPrefix(y.body, "apiVersion: v1\n") || o["kind"] != "ConfigMap" {
		t.Errorf("YAML: %v %s", err, y.body)
	}
	for path, indented := range map[string]bool{one + "?pretty=true": true, one + "?pretty": true, one + "?pretty=false": false, one: false} {
		if a := p.do(t, "GET", path, ""); strings.HasPrefix(a.body, "{\n  \"kind\"") != indented {
			t.Errorf("%s: %.60q", path, a.body)
		}
	}
	if a := p.do(t, "GET", one, "", "User-Agent", "curl/8"); !strings.HasPrefix(a.body, "{\n") {
		t.Errorf("for curl: %.60q", a.body)
	}
	if a := p.do(t, "HEAD", one, ""); a.code != 200 || a.body != "" {
		t.Errorf("HEAD: %d %q", a.code, a.body)
	}
	tab := p.do(t, "GET", list, "", "Accept", tableAs+",application/json").object(t)
	rows := tab["rows"].([]any)
	row := rows[0].(map[string]any)
	if tab["kind"] != "Table" || tab["apiVersion"] != "meta.k8s.io/v1" || row["cells"].([]any)[0] != "f" || row["object"].(map[string]any)["kind"] != "PartialObjectMetadata" {
		t.Errorf("table: %v", tab)
	}
	full := p.do(t, "GET", list+"?includeObject=Object", "", "Accept", tableAs).object(t)["rows"].([]any)[0].(map[string]any)
	if full["object"].(map[string]any)["kind"] != "ConfigMap" {
		t.Errorf("table with objects: %v", full)
	}
	none := p.do(t, "GET", list+"?includeObject=None", "", "Accept", tableAs).object(t)["rows"].([]any)[0].(map[string]any)
	if none["object"] != nil {
		t.Errorf("table without objects: %v", none)
	}
	single := p.do(t, "GET", one, "", "Accept", tableAs).object(t)
	if len(single["rows"].([]any)) != 1 || single["metadata"].(map[string]any)["resourceVersion"] == "" {
		t.Errorf("table of one: %v", single)
	}
	part := p.do(t, "GET", one, "", "Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").object(t)
	if part["kind"] != "PartialObjectMetadata" || part["data"] != nil {
		t.Errorf("metadata: %v", part)
	}
	if a := p.do(t, "GET", one, "", "Accept", "application/json;as=Chair;v=v1;g=meta.k8s.io"); a.code != 406 {
		t.Errorf("an unknown form: %d %s", a.code, a.body)
	}
	in := p.do(t, "POST", list, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yaml}\ndata: {a: b}\n", "Content-Type", "application/yaml")
	if in.code != 201 || !strings.Contains(in.body, `"data":{"a":"b"}`) {
		t.Errorf("YAML body: %d %s", in.code, in.body)
	}
}

func TestGzip(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c := s.Client(t).CoreV1().ConfigMaps("default")
	must(c.Create(t.Context(), configMap("big", "k", strings.Repeat("x", 200<<10)), metav1.CreateOptions{}))(t)
	p := newPeer(t, s.Admin(t))
	get := func(accept string) (*http.Response, []byte) {
		req := must(http.NewRequestWithContext(t.Context(), "GET", p.url+"/api/v1/namespaces/default/configmaps/big", nil))(t)
		req.Header.Set("Accept-Encoding", accept)
		resp := must(p.http.Do(req))(t)
		defer resp.Body.Close()
		return resp, must(io.ReadAll(resp.Body))(t)
	}
	resp, body := get("gzip")
	if resp.Header.Get("Content-Encoding") != "gzip" || len(body) > 10<<10 {
		t.Fatalf("%v, %d bytes", resp.Header, len(body))
	}
	plain := must(io.ReadAll(must(gzip.NewReader(strings.NewReader(string(body))))(t)))(t)
	_, want := get("identity")
	if string(plain) != string(want) {
		t.Error("what is compressed differs from what is not")
	}
}

func TestDiscovery(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	p := newPeer(t, s.Admin(t))
	const as = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	for _, path := range []string{"/api", "/apis"} {
		a := p.do(t, "GET", path, "", "Accept", as)
		if a.code != 200 || a.header.Get("Content-Type") != as || a.header.Get("ETag") == "" || a.object(t)["kind"] != "APIGroupDiscoveryList" {
			t.Errorf("%s: %d %v %.100s", path, a.code, a.header, a.body)
		}
		if b := p.do(t, "GET", path, "", "Accept", as, "If-None-Match", a.header.Get("ETag")); b.code != 304 || b.body != "" {
			t.Errorf("%s with its ETag: %d", path, b.code)
		}
	}
	for path, kind := range map[string]string{"/api": "APIVersions", "/api/v1": "APIResourceList", "/apis": "APIGroupList", "/apis/apps": "APIGroup", "/apis/apps/v1": "APIResourceList"} {
		if a := p.do(t, "GET", path, ""); a.code != 200 || a.object(t)["kind"] != kind {
			t.Errorf("%s: %d %.100s", path, a.code, a.body)
		}
	}
	// What is said to exist does, and both documents say the same.
	plain := discovery.NewDiscoveryClientForConfigOrDie(s.Admin(t))
	plain.UseLegacyDiscovery = true
	_, old, err := plain.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	_, new, err := discovery.NewDiscoveryClientForConfigOrDie(s.Admin(t)).ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	verbs := func(lists []*metav1.APIResourceList) map[string]string {
		out := map[string]string{}
		for _, l := range lists {
			for _, r := range l.APIResources {
				out[l.GroupVersion+"/"+r.Name] = r.Kind + " " + strings.Join(r.Verbs, ",")
			}
		}
		return out
	}
	x, y := verbs(old), verbs(new)
	if len(x) < 60 || len(x) != len(y) {
		t.Errorf("%d resources in one, %d in the other", len(x), len(y))
	}
	for k, v := range x {
		if y[k] != v {
			t.Errorf("%s: %q and %q", k, v, y[k])
		}
	}
	for _, l := range old {
		gv := must(schema.ParseGroupVersion(l.GroupVersion))(t)
		for _, r := range l.APIResources {
			if !strings.Contains(strings.Join(r.Verbs, ","), "list") {
				continue
			}
			base := "/apis/" + gv.String()
			if gv.Group == "" {
				base = "/api/" + gv.Version
			}
			if a := p.do(t, "GET", base+"/"+r.Name, ""); a.code != 200 || a.object(t)["kind"] != r.Kind+"List" {
				t.Errorf("list of %s: %d %.100s", r.Name, a.code, a.body)
			}
		}
	}
}

func TestOpenAPI(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	p := newPeer(t, s.Admin(t))
	index := p.do(t, "GET", "/openapi/v3", "").object(t)["paths"].(map[string]any)
	apps := index["apis/apps/v1"].(map[string]any)["serverRelativeURL"].(string)
	doc := p.do(t, "GET", apps, "")
	if doc.code != 200 || !strings.Contains(doc.body, `"io.k8s.api.apps.v1.Deployment"`) || !strings.Contains(doc.body, `"x-kubernetes-group-version-kind"`) {
		t.Errorf("%d %.200s", doc.code, doc.body)
	}
	v2 := p.do(t, "GET", "/openapi/v2", "")
	if v2.code != 200 || !strings.Contains(v2.body, `"io.k8s.api.core.v1.Pod"`) || v2.header.Get("ETag") == "" {
		t.Errorf("%d %.200s", v2.code, v2.body)
	}
	if a := p.do(t, "GET", "/openapi/v2", "", "Accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"); a.code != 200 || len(a.body) < 100000 {
		t.Errorf("protobuf: %d, %d bytes", a.code, len(a.body))
	}
	if _, err := discovery.NewDiscoveryClientForConfigOrDie(s.Admin(t)).OpenAPISchema(); err != nil {
		t.Error(err)
	}
}

func TestServerPaths(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	p := newPeer(t, s.Admin(t))
	if v := p.do(t, "GET", "/version", "").object(t); v["minor"] != "36" || v["gitVersion"] != "v1.36.3+knarr" {
		t.Errorf("%v", v)
	}
	for path, want := range map[string]string{"/livez": "ok", "/readyz?verbose": "[+]ping ok", "/healthz/ping": "ok"} {
		if a := p.do(t, "GET", path, ""); a.code != 200 || !strings.HasPrefix(a.body, want) {
			t.Errorf("%s: %d %q", path, a.code, a.body)
		}
	}
	p.do(t, "GET", "/api/v1/configmaps", "")
	p.do(t, "GET", "/apis/made/up/labels", "")
	m := p.do(t, "GET", "/metrics", "").body
	if !strings.Contains(m, `apiserver_request_total{code="200",group="",resource="configmaps",subresource="",verb="LIST",version="v1"} 1`) || strings.Contains(m, "made") {
		t.Errorf("metrics:\n%s", m)
	}
}
