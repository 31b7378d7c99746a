package webhookauthz_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/webhookauthz"
)

// open writes a configuration with one webhook, and loads it.
func open(t *testing.T, url, webhook string) (*auth.Chain, error) {
	dir := t.TempDir()
	kubeconfig, file := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config.yaml")
	for f, text := range map[string]string{
		kubeconfig: "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: " + url + "}}]\ncontexts: [{name: a, context: {cluster: a, user: \"\"}}]\ncurrent-context: a\n",
		file: "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- type: Webhook\n  name: w\n  webhook:\n    timeout: 3s\n    subjectAccessReviewVersion: v1\n" +
			"    matchConditionSubjectAccessReviewVersion: v1\n    connectionInfo: {type: KubeConfigFile, kubeConfigFile: " + kubeconfig + "}\n" + webhook,
	} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return webhookauthz.Load(t.Context(), file, nil, nil, slog.New(slog.DiscardHandler))
}

func TestWebhook(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		var v authorizationv1.SubjectAccessReview
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			t.Error(err)
		}
		switch v.Spec.User {
		case "good":
			v.Status.Allowed = true
		case "bad":
			v.Status = authorizationv1.SubjectAccessReviewStatus{Denied: true, Reason: "not you"}
		case "broken":
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	chain, err := open(t, srv.URL, "    failurePolicy: Deny\n    matchConditions: [{expression: \"request.resourceAttributes.namespace == 'x'\"}]\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, namespace string
		want            auth.Decision
		asked           int
	}{
		{"good", "x", auth.Permitted, 1}, {"good", "x", auth.Permitted, 1}, // it is remembered
		{"bad", "x", auth.Denied, 2}, {"other", "x", auth.NoOpinion, 3},
		{"good", "y", auth.NoOpinion, 3}, // none of its business
		{"broken", "x", auth.Denied, 4}, {"broken", "x", auth.Denied, 5},
	} {
		d, reason := chain.Authorize(t.Context(), &auth.Action{User: &authenticationv1.UserInfo{Username: c.user}, Verb: "get", Resource: "pods", Namespace: c.namespace})
		if d != c.want || asked != c.asked {
			t.Errorf("%s in %s: %v (%s) after %d questions, want %v after %d", c.user, c.namespace, d, reason, asked, c.want, c.asked)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		"    failurePolicy: Perhaps\n": "failurePolicy: Unsupported value",
		"    failurePolicy: Deny\n    matchConditions: [{expression: \"request.\"}]\n": "matchConditions[0].expression: Invalid value",
		"    failurePolicy: Deny\n- {type: Magic, name: m}\n":                          "authorizers[1].type: Unsupported value",
		"    failurePolicy: Deny\n- {type: RBAC, name: w}\n":                           "authorizers[1].name: Invalid value",
	} {
		if _, err := open(t, "https://x", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
