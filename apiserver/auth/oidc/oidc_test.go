package oidc_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/oidc"
)

// provider is an issuer of tokens on loopback.
type provider struct {
	*httptest.Server
	key     *ecdsa.PrivateKey
	id      string
	fetches atomic.Int32
}

func newProvider(t *testing.T) *provider {
	p := &provider{}
	p.turn(t, "one")
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var doc any = map[string]string{"issuer": p.URL, "jwks_uri": p.URL + "/keys"}
		if r.URL.Path == "/keys" {
			p.fetches.Add(1)
			doc = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &p.key.PublicKey, KeyID: p.id, Use: "sig", Algorithm: "ES256"}}}
		}
		if err := json.NewEncoder(w).Encode(doc); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

// turn gives the provider a new key.
func (p *provider) turn(t *testing.T, id string) {
	t.Helper()
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	p.id = id
}

func (p *provider) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.key, KeyID: p.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{"iss": p.URL, "aud": "knarr", "exp": time.Now().Add(time.Hour).Unix(), "sub": "s"}
	for k, v := range claims {
		all[k] = v
	}
	token, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (p *provider) config() apiserverv1.JWTAuthenticator {
	return apiserverv1.JWTAuthenticator{
		Issuer: apiserverv1.Issuer{URL: p.URL, Audiences: []string{"knarr"}, CertificateAuthority: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}))},
		ClaimMappings: apiserverv1.ClaimMappings{
			Username: apiserverv1.PrefixedClaimOrExpression{Claim: "sub", Prefix: new("oidc:")},
			Groups:   apiserverv1.PrefixedClaimOrExpression{Expression: "claims.roles.split(',')"},
			Extra:    []apiserverv1.ExtraMapping{{Key: "example.com/tenant", ValueExpression: "claims.tenant"}},
		},
		ClaimValidationRules: []apiserverv1.ClaimValidationRule{{Expression: "claims.tenant == 'a'", Message: "wrong tenant"}},
		UserValidationRules:  []apiserverv1.UserValidationRule{{Expression: "!user.username.startsWith('oidc:system:')", Message: "reserved"}},
	}
}

func TestTokens(t *testing.T) {
	p := newProvider(t)
	now := time.Now()
	o, err := oidc.New([]apiserverv1.JWTAuthenticator{p.config()}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	s := apitest.Start(t, apitest.Options{Bearers: []auth.Bearer{o}})
	whoami := func(token string) (*authenticationv1.UserInfo, error) {
		c := apitest.ClientOf(t, &rest.Config{Host: s.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: s.CA.PEM}})
		r, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		return &r.Status.UserInfo, nil
	}
	good := map[string]any{"roles": "dev,ops", "tenant": "a"}
	for range 2 {
		u, err := whoami(p.token(t, good))
		if err != nil || u.Username != "oidc:s" || !slices.Equal(u.Groups, []string{"dev", "ops", auth.GroupAuthenticated}) || u.Extra["example.com/tenant"][0] != "a" {
			t.Fatalf("%+v, %v", u, err)
		}
	}
	if n := p.fetches.Load(); n != 1 {
		t.Errorf("keys were fetched %d times, want once", n)
	}
	with := func(k string, v any) map[string]any {
		m := map[string]any{k: v}
		for k, v := range good {
			if _, ok := m[k]; !ok {
				m[k] = v
			}
		}
		return m
	}
	for name, claims := range map[string]map[string]any{
		"another audience": with("aud", "x"), "expired": with("exp", now.Add(-time.Minute).Unix()), "not yet": with("nbf", now.Add(time.Hour).Unix()),
		"another issuer": with("iss", "https://x"), "rule of claims": with("tenant", "b"), "rule of users": with("sub", "system:x"), "no name": with("sub", ""),
	} {
		if u, err := whoami(p.token(t, claims)); err == nil || !strings.Contains(err.Error(), "Unauthorized") {
			t.Errorf("%s: %+v, %v, want Unauthorized", name, u, err)
		}
	}
	p.turn(t, "two")
	now = now.Add(time.Minute)
	if _, err := whoami(p.token(t, good)); err != nil {
		t.Errorf("after the provider changed its key: %v", err)
	}
	forged := &provider{Server: p.Server}
	forged.turn(t, "two")
	if _, err := whoami(forged.token(t, good)); err == nil {
		t.Error("a token that somebody else signed was accepted")
	}
}

func TestConfigErrors(t *testing.T) {
	p := newProvider(t)
	for want, change := range map[string]func(*apiserverv1.JWTAuthenticator){
		"jwt[0].issuer.url: Invalid value":                      func(c *apiserverv1.JWTAuthenticator) { c.Issuer.URL = "http://x" },
		"jwt[0].issuer.audiences: Required value":               func(c *apiserverv1.JWTAuthenticator) { c.Issuer.Audiences = nil },
		"jwt[0].claimMappings.username.prefix: Required value":  func(c *apiserverv1.JWTAuthenticator) { c.ClaimMappings.Username.Prefix = nil },
		"jwt[0].claimMappings.groups.expression: Invalid value": func(c *apiserverv1.JWTAuthenticator) { c.ClaimMappings.Groups.Expression = "claims." },
		"jwt[0].issuer.certificateAuthority: Invalid value":     func(c *apiserverv1.JWTAuthenticator) { c.Issuer.CertificateAuthority = "x" },
	} {
		c := p.config()
		change(&c)
		if _, err := oidc.New([]apiserverv1.JWTAuthenticator{c}, time.Now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestAnonymous(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Anonymous: oidc.Anonymous(&apiserverv1.AnonymousAuthConfig{Enabled: true, Conditions: []apiserverv1.AnonymousAuthCondition{{Path: "/livez/ping"}}})})
	c := apitest.HTTP(t, &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{CAData: s.CA.PEM}})
	for path, want := range map[string]int{"/livez": 200, "/livez/ping": 403, "/api": 401} { // nobody binds a role to it
		resp, err := c.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}
