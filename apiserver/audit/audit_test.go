package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/audit"
)

type sink chan *auditv1.Event

func (s sink) Write(e *auditv1.Event) { s <- e }

func policy(t *testing.T, text string) *auditv1.Policy {
	t.Helper()
	p, err := audit.ParsePolicy([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// next returns the next event of a user.
func next(t *testing.T, s sink, user string) *auditv1.Event {
	t.Helper()
	for {
		select {
		case e := <-s:
			if e.User.Username == user {
				return e
			}
		case <-t.Context().Done():
			t.Fatal("no event came")
		}
	}
}

const rules = `
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Metadata
  resources: [{group: "", resources: [secrets]}]
- level: RequestResponse
  resources: [{group: "", resources: [configmaps]}]
  verbs: [create, update]
- level: Request
  resources: [{group: "", resources: [configmaps]}]
- level: None
  nonResourceURLs: ["/api*"]
- level: Metadata
`

func TestEvents(t *testing.T) {
	events := make(sink, 1000)
	s := apitest.Start(t, apitest.Options{Audit: &audit.Auditor{Policy: policy(t, rules), Backends: []audit.Backend{events}, Now: time.Now}})
	ctx := t.Context()
	for _, format := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(format, func(t *testing.T) {
			cfg := s.Admin(t)
			cfg.ContentType, cfg.AcceptContentTypes = format, format
			c := apitest.ClientOf(t, cfg).CoreV1()
			name := strings.ReplaceAll(strings.TrimPrefix(format, "application/"), "vnd.", "")
			if _, err := c.ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"k": "visible"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			e := next(t, events, "admin")
			if e.Level != auditv1.LevelRequestResponse || e.Stage != auditv1.StageResponseComplete || e.ResponseStatus.Code != 201 || e.Verb != "create" ||
				e.ObjectRef == nil || e.ObjectRef.Resource != "configmaps" || e.ObjectRef.Namespace != "default" || e.AuditID == "" || len(e.SourceIPs) != 1 {
				t.Errorf("create: %+v", e)
			}
			if e.Annotations["authorization.k8s.io/decision"] != "allow" {
				t.Errorf("annotations %v", e.Annotations)
			}
			for what, o := range map[string][]byte{"request": e.RequestObject.Raw, "response": e.ResponseObject.Raw} {
				if !bytes.Contains(o, []byte("visible")) || bytes.Contains(o, []byte("managedFields")) {
					t.Errorf("%s object: %s", what, o)
				}
			}
			if _, err := c.Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"k": "hidden"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			e = next(t, events, "admin")
			b, err := json.Marshal(e)
			if err != nil || e.RequestObject != nil || e.ResponseObject != nil || bytes.Contains(b, []byte("hidden")) {
				t.Errorf("the event of a secret: %s, %v", b, err)
			}
		})
	}
	u := apitest.ClientOf(t, s.As(t, "u"))
	_, err := u.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	e := next(t, events, "u")
	if err == nil || e.ResponseStatus.Code != 403 || e.ResponseStatus.Reason != metav1.StatusReasonForbidden || e.Annotations["authorization.k8s.io/decision"] != "forbid" {
		t.Errorf("what is forbidden: %+v, %v", e, err)
	}
	cfg := s.Admin(t)
	cfg.Impersonate.UserName = "x"
	if _, err := apitest.ClientOf(t, cfg).CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); err == nil {
		t.Error("user x may list pods")
	}
	if e := next(t, events, "admin"); e.ImpersonatedUser == nil || e.ImpersonatedUser.Username != "x" {
		t.Errorf("impersonation: %+v", e)
	}
	w, err := s.Client(t).CoreV1().Pods("").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e := next(t, events, "admin"); e.Stage != auditv1.StageResponseStarted || e.Verb != "watch" {
		t.Errorf("the beginning of a watch: %+v", e)
	}
	w.Stop()
	if e := next(t, events, "admin"); e.Stage != auditv1.StageResponseComplete || e.Verb != "watch" {
		t.Errorf("the end of a watch: %+v", e)
	}
	anybody, err := rest.HTTPClientFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: s.CA.PEM}})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := anybody.Get(s.URL + "/readyz"); err != nil || resp.Body.Close() != nil {
		t.Fatal(err)
	}
	if e := next(t, events, "system:anonymous"); e.RequestURI != "/readyz" || e.Verb != "get" || e.ResponseStatus.Code != 200 {
		t.Errorf("a request without credentials: %+v", e)
	}
	before := len(events)
	if resp, err := apitest.HTTP(t, s.Admin(t)).Get(s.URL + "/apis"); err != nil || resp.Body.Close() != nil || len(events) != before {
		t.Errorf("a request that the policy does not want was audited: %v", err)
	}
}

func TestPolicyErrors(t *testing.T) {
	for text, want := range map[string]string{
		"rules: []":                                                      "illegal policy with 0 rules",
		"rules: [{level: Some}]":                                         `rules[0].level: Unsupported value: "Some"`,
		"rules: [{verbs: [get]}]":                                        "rules[0].level: Required value",
		"rules: [{level: None, x: y}]":                                   "unknown field",
		"omitStages: [X]\nrules: [{level: None}]":                        "omitStages[0]: Invalid value",
		"rules: [{level: None, nonResourceURLs: [/a*b]}]":                "wildcards '*' must be the final character",
		"rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]": "cannot apply to both regular resources and non-resource URLs",
		"rules: [{level: None, resources: [{resourceNames: [a]}]}]":      "using resourceNames requires at least one resource",
	} {
		_, err := audit.ParsePolicy([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\n" + text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestLogRotates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l, err := audit.OpenLog(audit.LogConfig{Path: path, MaxSize: 1, MaxBackup: 2}, func() time.Time { now = now.Add(time.Second); return now }, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 50 {
		l.Write(&auditv1.Event{AuditID: "a", RequestURI: strings.Repeat("x", 100<<10)})
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v, want the present one and two old ones", files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil || info.Size() > 1<<20 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v, %v", f, info.Size(), info.Mode(), err)
		}
	}
}

func TestWebhook(t *testing.T) {
	got := make(chan auditv1.EventList, 10)
	fails := 1
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fails > 0 {
			fails--
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		var l auditv1.EventList
		if err := json.NewDecoder(r.Body).Decode(&l); err != nil {
			t.Error(err)
		}
		got <- l
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: " + srv.URL + "}}]\ncontexts: [{name: a, context: {cluster: a, user: \"\"}}]\ncurrent-context: a\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := audit.OpenWebhook(audit.WebhookConfig{ConfigFile: file, BatchMaxSize: 2, InitialBackoff: metav1.Duration{Duration: time.Millisecond}}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- w.Run(ctx) }()
	for _, id := range []string{"1", "2", "3"} {
		w.Write(&auditv1.Event{AuditID: types.UID("id-" + id)})
	}
	if l := <-got; len(l.Items) != 2 || l.Kind != "EventList" {
		t.Errorf("first batch: %+v", l)
	}
	cancel() // what is left is sent at the end
	if l := <-got; len(l.Items) != 1 || l.Items[0].AuditID != "id-3" {
		t.Errorf("last batch: %+v", l)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
