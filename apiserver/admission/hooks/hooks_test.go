package hooks_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"knarr.dev/knarr/apiserver/apitest"
)

// backend is a webhook server; each path is a webhook with its own answer.
type backend struct {
	URL string
	CA  []byte

	mu    sync.Mutex
	calls map[string][]*admissionv1.AdmissionRequest
}

type answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

func serve(t *testing.T, hooks map[string]answer) *backend {
	t.Helper()
	b := &backend{calls: map[string][]*admissionv1.AdmissionRequest{}}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Errorf("unreadable question: %v", err)
			return
		}
		b.mu.Lock()
		b.calls[r.URL.Path] = append(b.calls[r.URL.Path], review.Request)
		b.mu.Unlock()
		h := hooks[r.URL.Path]
		if h == nil {
			http.Error(w, "no such webhook", http.StatusNotFound)
			return
		}
		out := h(review.Request)
		if out != nil && out.UID == "" {
			out.UID = review.Request.UID
		}
		_ = json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: out})
	}))
	t.Cleanup(srv.Close)
	b.URL, b.CA = srv.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return b
}

func (b *backend) count(path string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.calls[path])
}

func (b *backend) last(t *testing.T, path string) *admissionv1.AdmissionRequest {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.calls[path]
	if len(list) == 0 {
		t.Fatalf("webhook %s was not asked", path)
	}
	return list[len(list)-1]
}

func ptr[T any](v T) *T { return &v }

func rule(groups, versions, resources []string, ops ...admv1.OperationType) []admv1.RuleWithOperations {
	return []admv1.RuleWithOperations{{Operations: ops, Rule: admv1.Rule{APIGroups: groups, APIVersions: versions, Resources: resources}}}
}

// core is a rule for resources of v1.
func core(resource string, ops ...admv1.OperationType) []admv1.RuleWithOperations {
	return rule([]string{""}, []string{"v1"}, []string{resource}, ops...)
}

func (b *backend) validating(path string, rules []admv1.RuleWithOperations) admv1.ValidatingWebhook {
	return admv1.ValidatingWebhook{
		Name: strings.Trim(path, "/") + ".example.com", ClientConfig: admv1.WebhookClientConfig{URL: ptr(b.URL + path), CABundle: b.CA},
		Rules: rules, SideEffects: ptr(admv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
	}
}

func (b *backend) mutating(path string, rules []admv1.RuleWithOperations) admv1.MutatingWebhook {
	return admv1.MutatingWebhook{
		Name: strings.Trim(path, "/") + ".example.com", ClientConfig: admv1.WebhookClientConfig{URL: ptr(b.URL + path), CABundle: b.CA},
		Rules: rules, SideEffects: ptr(admv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
	}
}

func configure(t *testing.T, c *kubernetes.Clientset, name string, hooks ...admv1.ValidatingWebhook) {
	t.Helper()
	_, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(),
		&admv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func configureMutating(t *testing.T, c *kubernetes.Clientset, name string, hooks ...admv1.MutatingWebhook) {
	t.Helper()
	_, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(),
		&admv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func configMap(name string, labels map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Data: map[string]string{"a": "b"}}
}

func allow(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: []string{"careful"}}
}

func deny(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: "not today", Code: 418, Reason: "Teapot"}}
}

func patch(text string) answer {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(text), PatchType: ptr(admissionv1.PatchTypeJSONPatch)}
	}
}

func start(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "ns")
	return s.Client(t)
}

// A webhook is asked from the request after its configuration on, and what it
// answers is the answer.
func TestValidate(t *testing.T) {
	b := serve(t, map[string]answer{"/deny": deny, "/allow": allow,
		"/plain": func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
			return &admissionv1.AdmissionResponse{}
		},
		"/uid": func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
			return &admissionv1.AdmissionResponse{UID: "x", Allowed: true}
		},
		"/absent": func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return nil },
		"/patch":  patch(`[{"op":"add","path":"/data/c","value":"d"}]`),
	})
	for _, c := range []struct {
		name, path, want string
		code             int32
		edit             func(*admv1.ValidatingWebhook)
	}{
		{"allowed", "/allow", "", 0, nil},
		{"denied", "/deny", `admission webhook "deny.example.com" denied the request: not today`, 418, nil},
		{"without explanation", "/plain", `admission webhook "plain.example.com" denied the request without explanation`, 400, nil},
		{"wrong uid", "/uid", `failed calling webhook "uid.example.com": received invalid webhook response: expected response.uid=`, 500, nil},
		{"no response", "/absent", `failed calling webhook "absent.example.com": received invalid webhook response: webhook response was absent`, 500, nil},
		{"patch", "/patch", `received invalid webhook response: validating webhook may not return response.patch`, 500, nil},
		{"fails", "/none", `Internal error occurred: failed calling webhook "none.example.com": failed to call webhook: the server could not find the requested resource`, 500, nil},
		{"failure ignored", "/none", "", 0, func(w *admv1.ValidatingWebhook) { w.FailurePolicy = ptr(admv1.Ignore) }},
		{"condition false", "/deny", "", 0, func(w *admv1.ValidatingWebhook) {
			w.MatchConditions = []admv1.MatchCondition{{Name: "c", Expression: "object.metadata.name == 'other'"}}
		}},
		{"condition true", "/deny", "not today", 418, func(w *admv1.ValidatingWebhook) {
			w.MatchConditions = []admv1.MatchCondition{{Name: "c", Expression: "request.userInfo.username == 'admin' && authorizer.group('').resource('pods').check('get').allowed()"}}
		}},
		{"condition fails", "/allow", "no such key: nothing", 403, func(w *admv1.ValidatingWebhook) {
			w.MatchConditions = []admv1.MatchCondition{{Name: "c", Expression: "object.nothing == 'other'"}}
		}},
		{"condition failure ignored", "/deny", "", 0, func(w *admv1.ValidatingWebhook) {
			w.FailurePolicy = ptr(admv1.Ignore)
			w.MatchConditions = []admv1.MatchCondition{{Name: "c", Expression: "object.nothing == 'other'"}}
		}},
		{"other labels", "/deny", "", 0, func(w *admv1.ValidatingWebhook) {
			w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"k": "other"}}
		}},
		{"labels", "/deny", "not today", 418, func(w *admv1.ValidatingWebhook) {
			w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"k": "v"}}
		}},
		{"other namespace", "/deny", "", 0, func(w *admv1.ValidatingWebhook) {
			w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "other"}}
		}},
		{"other operation", "/deny", "", 0, func(w *admv1.ValidatingWebhook) { w.Rules = core("configmaps", admv1.Update, admv1.Delete) }},
		{"other resource", "/deny", "", 0, func(w *admv1.ValidatingWebhook) { w.Rules = core("configmaps/status", admv1.Create) }},
		{"other scope", "/deny", "", 0, func(w *admv1.ValidatingWebhook) { w.Rules[0].Scope = ptr(admv1.ClusterScope) }},
		{"wildcards", "/deny", "not today", 418, func(w *admv1.ValidatingWebhook) {
			w.Rules = rule([]string{"*"}, []string{"*"}, []string{"*/*"}, admv1.OperationAll)
			w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "ns"}}
		}},
		{"v1beta1", "/deny", "not today", 418, func(w *admv1.ValidatingWebhook) { w.AdmissionReviewVersions = []string{"v7", "v1beta1"} }},
		{"bad CA", "/deny", "certificate signed by unknown authority", 500, func(w *admv1.ValidatingWebhook) { w.ClientConfig.CABundle = nil }},
		{"no service", "/deny", `service "hook" not found`, 500, func(w *admv1.ValidatingWebhook) {
			w.ClientConfig = admv1.WebhookClientConfig{Service: &admv1.ServiceReference{Namespace: "ns", Name: "hook"}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := start(t)
			w := b.validating(c.path, core("configmaps", admv1.Create))
			if c.edit != nil {
				c.edit(&w)
			}
			configure(t, client, "test", w)
			_, err := client.CoreV1().ConfigMaps("ns").Create(t.Context(), configMap("x", map[string]string{"k": "v"}), metav1.CreateOptions{})
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one that contains %q", err, c.want)
			}
			if got := apierrors.APIStatus(nil); true {
				got, _ = err.(apierrors.APIStatus)
				if got == nil || got.Status().Code != c.code {
					t.Errorf("code of %#v, want %d", err, c.code)
				}
			}
		})
	}
}

// The question says all about the write.
func TestQuestion(t *testing.T) {
	b := serve(t, map[string]answer{"/ask": allow})
	c := start(t)
	ctx := t.Context()
	maps := c.CoreV1().ConfigMaps("ns")
	w := b.validating("/ask", append(core("configmaps", admv1.OperationAll), rule([]string{"autoscaling"}, []string{"v1"}, []string{"horizontalpodautoscalers"}, admv1.Create)...))
	w.Rules = append(w.Rules, core("pods/eviction", admv1.Create)[0], core("serviceaccounts/token", admv1.Create)[0])
	configure(t, c, "test", w)

	if _, err := maps.Create(ctx, configMap("x", nil), metav1.CreateOptions{FieldManager: "me"}); err != nil {
		t.Fatal(err)
	}
	q := b.last(t, "/ask")
	if q.Operation != admissionv1.Create || q.Name != "x" || q.Namespace != "ns" || q.Kind != (metav1.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}) ||
		q.Resource != (metav1.GroupVersionResource{Version: "v1", Resource: "configmaps"}) || *q.RequestKind != q.Kind || *q.RequestResource != q.Resource ||
		q.UserInfo.Username != "admin" || *q.DryRun || len(q.OldObject.Raw) > 0 || !strings.Contains(string(q.Options.Raw), `"fieldManager":"me"`) {
		t.Errorf("question about a creation: %+v", q)
	}
	if o := string(q.Object.Raw); !strings.Contains(o, `"kind":"ConfigMap"`) || !strings.Contains(o, `"apiVersion":"v1"`) || !strings.Contains(o, `"uid":`) {
		t.Errorf("object %s", o)
	}
	changed := configMap("x", nil)
	changed.Data["a"] = "c"
	if _, err := maps.Update(ctx, changed, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Fatal(err)
	}
	q = b.last(t, "/ask")
	if q.Operation != admissionv1.Update || !*q.DryRun || !strings.Contains(string(q.Object.Raw), `"a":"c"`) || !strings.Contains(string(q.OldObject.Raw), `"a":"b"`) {
		t.Errorf("question about an update: %+v", q)
	}
	if err := maps.Delete(ctx, "x", metav1.DeleteOptions{PropagationPolicy: ptr(metav1.DeletePropagationForeground)}); err != nil {
		t.Fatal(err)
	}
	q = b.last(t, "/ask")
	if q.Operation != admissionv1.Delete || len(q.Object.Raw) > 0 || !strings.Contains(string(q.OldObject.Raw), `"a":"b"`) || !strings.Contains(string(q.Options.Raw), "Foreground") {
		t.Errorf("question about a deletion: %+v", q)
	}
	hpa := []byte(`{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"h"},"spec":{"maxReplicas":3,"scaleTargetRef":{"kind":"Deployment","name":"d","apiVersion":"apps/v1"}}}`)
	if err := c.AutoscalingV2().RESTClient().Post().Namespace("ns").Resource("horizontalpodautoscalers").Body(hpa).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	q = b.last(t, "/ask")
	if q.Kind.Version != "v1" || q.RequestKind.Version != "v2" || q.Resource.Version != "v1" || q.RequestResource.Version != "v2" || !strings.Contains(string(q.Object.Raw), `"apiVersion":"autoscaling/v1"`) {
		t.Errorf("question in an equivalent version: %+v of %s", q, q.Object.Raw)
	}
}

// The patched object is the one that is stored, with defaults and validated.
func TestMutate(t *testing.T) {
	b := serve(t, map[string]answer{
		"/one":    patch(`[{"op":"add","path":"/data/one","value":"1"}]`),
		"/two":    patch(`[{"op":"add","path":"/data/two","value":"2"}]`),
		"/bad":    patch(`[{"op":"remove","path":"/data/none"}]`),
		"/wrong":  patch(`[{"op":"add","path":"/data/a b","value":"1"}]`),
		"/status": patch(`[{"op":"replace","path":"/status","value":{"phase":"Running"}},{"op":"add","path":"/spec/containers/-","value":{"name":"side","image":"x"}}]`),
	})
	t.Run("in order", func(t *testing.T) {
		c := start(t)
		configureMutating(t, c, "b", b.mutating("/two", core("configmaps", admv1.Create)))
		configureMutating(t, c, "a", b.mutating("/one", core("configmaps", admv1.Create)))
		o, err := c.CoreV1().ConfigMaps("ns").Create(t.Context(), configMap("x", nil), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(o.Data) != "map[a:b one:1 two:2]" {
			t.Errorf("data %v", o.Data)
		}
		if q := b.last(t, "/two"); !strings.Contains(string(q.Object.Raw), `"one":"1"`) {
			t.Errorf("the second webhook saw %s", q.Object.Raw)
		}
	})
	t.Run("not applicable", func(t *testing.T) {
		c := start(t)
		configureMutating(t, c, "a", b.mutating("/bad", core("configmaps", admv1.Create)))
		if _, err := c.CoreV1().ConfigMaps("ns").Create(t.Context(), configMap("x", nil), metav1.CreateOptions{}); !apierrors.IsInternalError(err) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("invalid", func(t *testing.T) {
		c := start(t)
		configureMutating(t, c, "a", b.mutating("/wrong", core("configmaps", admv1.Create)))
		if _, err := c.CoreV1().ConfigMaps("ns").Create(t.Context(), configMap("x", nil), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("pod", func(t *testing.T) {
		c := start(t)
		ctx := t.Context()
		if _, err := c.CoreV1().ServiceAccounts("ns").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		configureMutating(t, c, "a", b.mutating("/status", core("pods", admv1.Create)))
		p, err := c.CoreV1().Pods("ns").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x"}}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if p.Status.Phase != corev1.PodPending || len(p.Spec.Containers) != 2 || p.Spec.Containers[1].ImagePullPolicy != corev1.PullAlways {
			t.Errorf("phase %s, containers %+v", p.Status.Phase, p.Spec.Containers)
		}
		// The built-in steps were asked again: the new container has the token too.
		if m := p.Spec.Containers[1].VolumeMounts; len(m) != 1 {
			t.Errorf("mounts of the injected container: %+v", m)
		}
	})
}

// A webhook that wants it is asked again when a later one changed the object.
func TestReinvocation(t *testing.T) {
	b := serve(t, map[string]answer{
		"/first":  allow,
		"/second": patch(`[{"op":"add","path":"/data/two","value":"2"}]`),
	})
	c := start(t)
	first := b.mutating("/first", core("configmaps", admv1.Create))
	first.ReinvocationPolicy = ptr(admv1.IfNeededReinvocationPolicy)
	configureMutating(t, c, "a", first, b.mutating("/second", core("configmaps", admv1.Create)))
	if _, err := c.CoreV1().ConfigMaps("ns").Create(t.Context(), configMap("x", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if one, two := b.count("/first"), b.count("/second"); one != 2 || two != 1 {
		t.Errorf("asked %d and %d times, want 2 and 1", one, two)
	}
	if q := b.last(t, "/first"); !strings.Contains(string(q.Object.Raw), `"two":"2"`) {
		t.Errorf("asked again about %s", q.Object.Raw)
	}
}

// Webhooks cannot lock their own configurations, and a changed configuration
// counts at once.
func TestConfigurations(t *testing.T) {
	b := serve(t, map[string]answer{"/deny": deny})
	c := start(t)
	ctx := t.Context()
	all := b.validating("/deny", rule([]string{"*"}, []string{"*"}, []string{"*/*"}, admv1.OperationAll))
	configure(t, c, "all", all)
	for i := range 5 {
		name := fmt.Sprintf("m%d", i)
		if _, err := c.CoreV1().ConfigMaps("ns").Create(ctx, configMap(name, nil), metav1.CreateOptions{}); err == nil {
			t.Fatal("the webhook was not asked")
		}
		if err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(ctx, "all", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CoreV1().ConfigMaps("ns").Create(ctx, configMap(name, nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		configure(t, c, "all", all)
	}
}
