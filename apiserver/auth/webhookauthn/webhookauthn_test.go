package webhookauthn_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/webhookauthn"
)

const api = "https://api"

func open(t *testing.T, srv *httptest.Server, ttl time.Duration) *webhookauthn.Webhook {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: " + srv.URL + "/review, certificate-authority-data: " + base64.StdEncoding.EncodeToString(ca) + "}}]\nusers: [{name: u, user: {token: secret}}]\ncontexts: [{name: a, context: {cluster: a, user: u}}]\ncurrent-context: a\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := webhookauthn.Load(file, []string{api}, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestReview(t *testing.T) {
	asked := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		var v authenticationv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil || r.URL.Path != "/review" || r.Header.Get("Authorization") != "Bearer secret" || v.APIVersion != "authentication.k8s.io/v1" || v.Kind != "TokenReview" {
			t.Errorf("asked %s %v %+v: %v", r.URL, r.Header, v, err)
		}
		user := authenticationv1.UserInfo{Username: "ann", UID: "7", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}}}
		switch v.Spec.Token {
		case "good", "narrow":
			v.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: user}
			if v.Spec.Token == "narrow" {
				v.Status.Audiences = []string{"x"}
			}
		case "bad":
			v.Status.Error = "no such user"
		case "broken":
			http.Error(w, "no", http.StatusBadRequest)
			return
		case "odd":
			v.Kind = "Other"
		}
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	w := open(t, srv, time.Hour)
	for _, c := range []struct {
		token     string
		audiences []string
		fails     string // empty: it is ann
		asked     int
	}{
		{"good", nil, "", 1}, {"good", nil, "", 1}, // it is remembered
		{"good", []string{api, "y"}, "", 2}, {"good", []string{"y"}, "other audiences", 3},
		{"narrow", nil, "other audiences", 4}, {"narrow", []string{"x"}, "", 5},
		{"bad", nil, "no such user", 6}, {"bad", nil, "no such user", 6},
		{"unknown", nil, auth.ErrOtherToken.Error(), 7}, {"unknown", nil, auth.ErrOtherToken.Error(), 7},
		{"broken", nil, "400", 8}, {"broken", nil, "400", 9}, // failures are not
		{"odd", nil, "want a TokenReview", 10},
	} {
		user, shared, err := w.Review(t.Context(), c.token, c.audiences)
		switch {
		case asked != c.asked:
			t.Errorf("%s %v: asked %d times, want %d", c.token, c.audiences, asked, c.asked)
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s %v: %v, want %q", c.token, c.audiences, err, c.fails)
			}
		case err != nil || user.Username != "ann" || user.Extra["k"][0] != "v" || strings.Join(user.Groups, " ") != "g system:authenticated" || len(shared) != 1:
			t.Errorf("%s %v: %+v %v %v", c.token, c.audiences, user, shared, err)
		}
	}
	fresh := open(t, srv, 0)
	for range 2 {
		if _, _, err := fresh.Review(t.Context(), "good", nil); err != nil {
			t.Error(err)
		}
	}
	if asked != 12 {
		t.Errorf("asked %d times: nothing was to be remembered", asked)
	}
}

// The webhook is asked last, and only about what nobody else knows.
func TestAuthenticatorAsksLast(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var v authenticationv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			t.Error(err)
		}
		v.Status.Authenticated, v.Status.User.Username = v.Spec.Token == "mine", "ann"
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	tokens, err := auth.OpenTokens(filepath.Join(t.TempDir(), "sa.key"), api, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	a := &auth.Authenticator{Tokens: tokens, Webhook: open(t, srv, time.Hour)}
	request := func(token string) *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		return r
	}
	if u, err := a.Authenticate(request("mine")); err != nil || u.Username != "ann" {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := a.Authenticate(request("theirs")); !errors.Is(err, auth.ErrUnauthenticated) {
		t.Errorf("%v", err)
	}
	srv.Close()
	own, _, err := tokens.Issue(auth.Bound{Namespace: "n", ServiceAccount: auth.NamedObject{Name: "s"}}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := a.Authenticate(request(own)); err != nil || u.Username != "system:serviceaccount:n:s" {
		t.Errorf("%+v, %v", u, err)
	}
}
