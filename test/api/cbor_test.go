package api

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/apiserver/apitest"
)

// client-go reads its features once in a process: the test that uses them runs in
// one of its own.
const cborChild = "KNARR_TEST_CBOR_CLIENT"

func TestCBORClient(t *testing.T) {
	if os.Getenv(cborChild) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCBORClient$", "-test.v")
		cmd.Env = append(os.Environ(), cborChild+"=1", "KUBE_FEATURE_ClientsAllowCBOR=true", "KUBE_FEATURE_ClientsPreferCBOR=true")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestCBORClient")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s := apitest.Start(t, apitest.Options{})
	things := define(t, s) // with a client of its own
	seen := &forms{}
	cfg := s.Admin(t)
	cfg.ContentType, cfg.AcceptContentTypes = "application/cbor", "application/cbor,application/json"
	cfg.Wrap(seen.wrap)
	t.Run("built-in", func(t *testing.T) { typedCBOR(t, cfg) })
	if other := seen.other(); other != "" {
		t.Errorf("typed client: %s", other)
	}
	dynamicConfig := s.Admin(t)
	dynamicConfig.Wrap(seen.wrap)
	dyn, err := dynamic.NewForConfig(dynamicConfig)
	if err != nil {
		t.Fatal(err)
	}
	_ = things
	t.Run("custom", func(t *testing.T) { customCBOR(t, dyn.Resource(thingsGVR).Namespace("default")) })
	if other := seen.other(); other != "" {
		t.Errorf("dynamic client: %s", other)
	}
}

// forms notes what client and server say to each other that is not CBOR.
type forms struct {
	mu  sync.Mutex
	odd []string
}

func (f *forms) wrap(rt http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		asked := r.Header.Get("Content-Type")
		resp, err := rt.RoundTrip(r)
		if err != nil {
			return resp, err
		}
		answered := resp.Header.Get("Content-Type")
		want := "application/cbor"
		if strings.Contains(r.URL.RawQuery, "watch=true") {
			want = "application/cbor-seq"
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.Body != nil && !strings.HasSuffix(asked, "cbor") && !strings.HasSuffix(asked, "merge-patch+json") || resp.StatusCode < 300 && answered != want {
			f.odd = append(f.odd, r.Method+" "+r.URL.Path+": "+asked+", answer "+answered)
		}
		return resp, nil
	})
}

func (f *forms) other() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.odd, "\n")
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func typedCBOR(t *testing.T, cfg *rest.Config) {
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, secrets := t.Context(), c.CoreV1().Secrets("default")
	w := must(secrets.Watch(ctx, metav1.ListOptions{}))(t)
	defer w.Stop()
	blob := []byte{0, 0xff, 'x'}
	made := must(secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string][]byte{"b": blob}}, metav1.CreateOptions{}))(t)
	if made.UID == "" || made.CreationTimestamp.IsZero() || len(made.ManagedFields) != 1 || !bytes.Equal(made.Data["b"], blob) {
		t.Errorf("created %+v", made)
	}
	made.Labels = map[string]string{"x": "y"}
	made = must(secrets.Update(ctx, made, metav1.UpdateOptions{}))(t)
	must(secrets.Patch(ctx, "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"z":"1"}}}`), metav1.PatchOptions{}))(t)
	applied := must(secrets.Apply(ctx, v1.Secret("a", "default").WithData(map[string][]byte{"more": {1, 0xfe}}), metav1.ApplyOptions{FieldManager: "m"}))(t)
	if !bytes.Equal(applied.Data["more"], []byte{1, 0xfe}) || !bytes.Equal(applied.Data["b"], blob) || applied.Labels["z"] != "1" {
		t.Errorf("applied %+v", applied)
	}
	list := must(secrets.List(ctx, metav1.ListOptions{}))(t)
	if len(list.Items) != 1 || list.ResourceVersion == "" || list.Items[0].Labels["x"] != "y" {
		t.Errorf("list %+v", list)
	}
	if _, err := secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("again: %v", err)
	}
	if err := secrets.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(made.UID))}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Modified, watch.Modified, watch.Deleted} {
		ev := <-w.ResultChan()
		if got, ok := ev.Object.(*corev1.Secret); ev.Type != want || !ok || !bytes.Equal(got.Data["b"], blob) {
			t.Errorf("event %v %+v, want %s", ev.Type, ev.Object, want)
		}
	}
	// Views, scales and many items.
	must(c.AppsV1().Deployments("default").Create(ctx, deployment("d", 0), metav1.CreateOptions{}))(t)
	old := must(c.ExtensionsV1beta1().Deployments("default").List(ctx, metav1.ListOptions{}))(t)
	if len(old.Items) != 1 || old.Items[0].Spec.Template.Spec.Containers == nil {
		t.Errorf("old version: %+v", old)
	}
	scale := must(c.AppsV1().Deployments("default").GetScale(ctx, "d", metav1.GetOptions{}))(t)
	scale.Spec.Replicas = 3
	if scale = must(c.AppsV1().Deployments("default").UpdateScale(ctx, "d", scale, metav1.UpdateOptions{}))(t); scale.Spec.Replicas != 3 {
		t.Errorf("scale %+v", scale)
	}
	const many = 300
	for i := range many {
		must(c.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "m-"}, Data: map[string]string{"i": strings.Repeat("x", i)}}, metav1.CreateOptions{}))(t)
	}
	if l := must(c.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{}))(t); len(l.Items) != many {
		t.Errorf("%d config maps", len(l.Items))
	}
}

func customCBOR(t *testing.T, things dynamic.ResourceInterface) {
	ctx := t.Context()
	w := must(things.Watch(ctx, metav1.ListOptions{}))(t)
	defer w.Stop()
	made := must(things.Create(ctx, thing("a", "1"), metav1.CreateOptions{}))(t)
	must(things.Update(ctx, made, metav1.UpdateOptions{}))(t)
	applied := must(things.Apply(ctx, "a", thing("a", "2"), metav1.ApplyOptions{FieldManager: "m", Force: true}))(t)
	if v, _, _ := unstructured.NestedString(applied.Object, "data", "k"); v != "2" {
		t.Errorf("applied %v", applied)
	}
	if l := must(things.List(ctx, metav1.ListOptions{}))(t); len(l.Items) != 1 || l.GetKind() != "ThingList" {
		t.Errorf("list %v", l)
	}
	bad := thing("b", "1")
	bad.Object["unknown"] = int64(1)
	if _, err := things.Create(ctx, bad, metav1.CreateOptions{FieldValidation: "Strict"}); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `unknown field "unknown"`) {
		t.Errorf("unknown field: %v", err)
	}
	if err := things.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted} {
		if ev := <-w.ResultChan(); ev.Type != want || ev.Object.(*unstructured.Unstructured).GetName() != "a" {
			t.Errorf("event %+v, want %s", ev, want)
		}
	}
}

// What a client writes and sees by hand.
func TestCBORForms(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	p := newPeer(t, s.Admin(t))
	const list = "/api/v1/namespaces/default/configmaps"
	body := func(v any) string { return string(must(direct.Marshal(v))(t)) }
	cm := map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "c"}, "data": map[string]any{"k": "v"}, "odd": 1}
	const cbor = "application/cbor"
	for _, c := range []struct {
		name, method, path, body, media, accept string
		code                                    int
		answer, holds                           string
	}{
		{"strict", "POST", list + "?fieldValidation=Strict", body(cm), cbor, cbor, 400, "application/json", "unknown field"},
		{"lenient", "POST", list, body(cm), cbor, cbor, 201, cbor, "\xd9\xd9\xf7"},
		{"no CBOR", "POST", list, "\xff", cbor, cbor, 400, "application/json", "unexpected"},
		{"repeated keys", "POST", list, "\xa2\x61a\x01\x61a\x02", cbor, cbor, 400, "application/json", "duplicate"},
		{"weights", "GET", list, "", "", "application/json;q=0.9,application/cbor;q=1", 200, cbor, "\xd9\xd9\xf7"},
		{"equal weights", "GET", list, "", "", "application/json,application/cbor", 200, "application/json", "{"},
		{"no table", "GET", list, "", "", "application/cbor;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io", 200, "application/json", `"kind":"Table"`},
		{"metadata", "GET", list, "", "", "application/cbor;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", 200, cbor, "PartialObjectMetadataList"},
		{"apply", "PATCH", list + "/d?fieldManager=m", body(map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]any{"a": "b"}}), "application/apply-patch+cbor", "", 201, "application/json", `"operation":"Apply"`},
		{"apply nothing", "PATCH", list + "/d?fieldManager=m", "\xff", "application/apply-patch+cbor", "", 400, "application/json", "error decoding CBOR"},
		{"watch", "GET", list + "?watch=true&timeoutSeconds=1", "", "", cbor, 200, "application/cbor-seq", "\xd9\xd9\xf7"},
		{"delete", "DELETE", list + "/c", body(map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "dryRun": []string{"All"}}), cbor, cbor, 200, cbor, "Success"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := p.do(t, c.method, c.path, c.body, "Content-Type", c.media, "Accept", c.accept)
			if a.code != c.code || a.header.Get("Content-Type") != c.answer || !strings.Contains(a.body, c.holds) {
				t.Errorf("%d %s %q", a.code, a.header.Get("Content-Type"), a.body)
			}
		})
	}
}

func FuzzCBOR(f *testing.F) {
	x := newTarget(f)
	for _, v := range []any{
		map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "x", "managedFields": []any{map[string]any{"fieldsV1": map[string]any{"f:x": 1}}}}, "data": map[string]any{"a": "b"}, "binaryData": map[string]any{"a": []byte("x")}},
		map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "spec": map[string]any{"replicas": 1.5, "template": []any{nil, true, -1}}},
		map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "dryRun": []any{"All"}},
	} {
		b, err := direct.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\xd9\xd9\xf7\xa1\x64kind\x9f\xff"))
	f.Add([]byte("\xbf\x41a\xf9\x7e\x00\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		const cms = "/api/v1/namespaces/default/configmaps"
		for _, path := range []string{cms, "/apis/apps/v1/namespaces/default/deployments"} {
			x.ask(t, "POST", path, "dryRun=All&fieldValidation=Strict", "application/cbor", body)
			x.ask(t, "POST", path, "dryRun=All", "application/cbor", body)
		}
		x.ask(t, "PATCH", cms+"/c", "dryRun=All&fieldManager=f", "application/apply-patch+cbor", body)
		x.ask(t, "DELETE", cms+"/c", "dryRun=All", "application/cbor", body)
	})
}
