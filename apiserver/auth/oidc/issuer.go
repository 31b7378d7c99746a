package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/cel-go/cel"
	authenticationv1 "k8s.io/api/authentication/v1"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"

	"knarr.dev/knarr/apiserver/auth"
)

// issuer is one issuer of tokens.
type issuer struct {
	cfg    *apiserverv1.JWTAuthenticator
	client *http.Client
	now    func() time.Time

	username, groups, uid        cel.Program
	extra, claimRules, userRules []cel.Program

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetched time.Time
}

// algorithms are those that Kubernetes takes.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512}

// refetch bounds how often tokens with unknown keys make the server fetch keys.
const refetch = 10 * time.Second

// maxDocument bounds what an issuer may answer, in bytes.
const maxDocument = 1 << 20

// Check implements auth.Bearer.
func (a *Authenticator) Check(ctx context.Context, token string) (*authenticationv1.UserInfo, error) {
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return nil, auth.ErrOtherToken
	}
	var named jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&named); err != nil {
		return nil, auth.ErrOtherToken
	}
	is := a.issuers[named.Issuer]
	if is == nil {
		return nil, auth.ErrOtherToken
	}
	user, err := is.check(ctx, parsed)
	if err != nil {
		return nil, fmt.Errorf("oidc: %w", err)
	}
	return user, nil
}

func (is *issuer) check(ctx context.Context, token *jwt.JSONWebToken) (*authenticationv1.UserInfo, error) {
	if len(token.Headers) != 1 {
		return nil, errors.New("want one signature")
	}
	key, err := is.key(ctx, token.Headers[0].KeyID)
	if err != nil {
		return nil, fmt.Errorf("keys of issuer %s: %w", is.cfg.Issuer.URL, err)
	}
	var std jwt.Claims
	claims := map[string]any{}
	if err := token.Claims(key, &std, &claims); err != nil {
		return nil, fmt.Errorf("verify token: %w", err)
	}
	if std.Expiry == nil {
		return nil, errors.New("the token has no expiry")
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Issuer: is.cfg.Issuer.URL, AnyAudience: is.cfg.Issuer.Audiences, Time: is.now()}, 0); err != nil {
		return nil, fmt.Errorf("verify token: %w", err)
	}
	return is.user(claims)
}

// key returns the issuer's key with an ID; without one, the only key.
func (is *issuer) key(ctx context.Context, id string) (any, error) {
	is.mu.Lock()
	defer is.mu.Unlock()
	find := func() any {
		for _, k := range is.keys {
			if k.KeyID == id || id == "" && len(is.keys) == 1 {
				return k.Key
			}
		}
		return nil
	}
	if k := find(); k != nil {
		return k, nil
	}
	if now := is.now(); is.fetched.IsZero() || now.Sub(is.fetched) >= refetch {
		is.fetched = now
		keys, err := is.fetch(ctx)
		if err != nil {
			return nil, err
		}
		is.keys = keys
	}
	if k := find(); k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("there is no key %q", id)
}

// fetch asks the issuer for its keys (OpenID Connect Discovery 1.0).
func (is *issuer) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	at := deref(is.cfg.Issuer.DiscoveryURL)
	if at == "" {
		at = strings.TrimSuffix(is.cfg.Issuer.URL, "/") + "/.well-known/openid-configuration"
	}
	if err := is.get(ctx, at, &doc); err != nil {
		return nil, err
	}
	if doc.Issuer != is.cfg.Issuer.URL {
		return nil, fmt.Errorf("the discovery document is of issuer %q", doc.Issuer)
	}
	var set jose.JSONWebKeySet
	if err := is.get(ctx, doc.Keys, &set); err != nil {
		return nil, err
	}
	var out []jose.JSONWebKey
	for _, k := range set.Keys {
		if k.IsPublic() && k.Use != "enc" {
			out = append(out, k)
		}
	}
	return out, nil
}

func (is *issuer) get(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := is.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxDocument)).Decode(into)
}
