// Package auth says who a request comes from and what it may do.
package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// Names of Kubernetes' built-in users and groups.
const (
	GroupMasters         = "system:masters"
	GroupAuthenticated   = "system:authenticated"
	GroupServiceAccounts = "system:serviceaccounts"
	GroupNodes           = "system:nodes"
	UserServiceAccount   = "system:serviceaccount:"
	UserNode             = "system:node:"
	UserAnonymous        = "system:anonymous"
	GroupUnauthenticated = "system:unauthenticated"
)

// ErrUnauthenticated: the request shows no credentials, or bad ones.
var ErrUnauthenticated = errors.New("Unauthorized")

// Authenticator recognises who sends a request.
type Authenticator struct {
	// Tokens checks bearer tokens; nil accepts none.
	Tokens *Tokens
	// Bearers are asked about the tokens that are no service accounts'.
	Bearers []Bearer
	// Webhook is asked about the tokens that nobody else accepts; nil: nobody is.
	Webhook Reviewer
	// Anonymous tells whether requests without credentials are answered, as the user
	// system:anonymous, by their paths; nil: none is.
	Anonymous func(path string) bool
	// FrontProxy is the authority of proxies that name the user in headers; nil: no
	// proxy is believed.
	FrontProxy *x509.Certificate
}

// FrontProxyName is the common name of the certificate that may name other users.
const FrontProxyName = "front-proxy-client"

// Anonymous is who sends no credentials.
func Anonymous() *authenticationv1.UserInfo {
	return &authenticationv1.UserInfo{Username: UserAnonymous, Groups: []string{GroupUnauthenticated}}
}

// Authenticate returns the user behind a request: of its client certificate
// (common name and organisations, verified by TLS against the client CA) or of
// its bearer token.
func (a *Authenticator) Authenticate(r *http.Request) (*authenticationv1.UserInfo, error) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		chain := r.TLS.VerifiedChains[0]
		if a.FrontProxy != nil && chain[len(chain)-1].Equal(a.FrontProxy) {
			return proxied(r, chain[0])
		}
		return userOf(chain[0])
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		if a.Anonymous != nil && r.Header.Get("Authorization") == "" && a.Anonymous(r.URL.Path) {
			return Anonymous(), nil
		}
		return nil, ErrUnauthenticated
	}
	user, _, err := a.Token(r.Context(), strings.TrimSpace(token), nil)
	if err != nil {
		return nil, errors.Join(ErrUnauthenticated, err)
	}
	return user, nil
}

// Token returns the user behind a bearer token for one of the audiences (nil: the
// API server's own), and the audiences that token and question share.
func (a *Authenticator) Token(ctx context.Context, token string, audiences []string) (*authenticationv1.UserInfo, []string, error) {
	user, shared, err := a.known(ctx, token, audiences)
	if err == nil || a.Webhook == nil {
		return user, shared, err
	}
	user, shared, asked := a.Webhook.Review(ctx, token, audiences)
	switch {
	case asked == nil:
		return user, shared, nil
	case errors.Is(asked, ErrOtherToken):
		return nil, nil, err
	}
	return nil, nil, errors.Join(err, asked)
}

// Reviewer recognises bearer tokens by asking somebody else.
type Reviewer interface {
	// Review returns the user behind a token for one of the audiences (nil: the API
	// server's own) and the audiences that token and question share; ErrOtherToken
	// for a token that it does not know.
	Review(ctx context.Context, token string, audiences []string) (*authenticationv1.UserInfo, []string, error)
}

// known is Token without the webhook.
func (a *Authenticator) known(ctx context.Context, token string, audiences []string) (*authenticationv1.UserInfo, []string, error) {
	for _, b := range a.Bearers {
		user, err := b.Check(ctx, token)
		if errors.Is(err, ErrOtherToken) {
			continue
		}
		shared := a.own(audiences)
		if err == nil && len(audiences) > 0 && len(shared) == 0 {
			return nil, nil, fmt.Errorf("the token is not for the target audiences %q", audiences)
		}
		return user, shared, err
	}
	if a.Tokens == nil {
		return nil, nil, ErrUnauthenticated
	}
	return a.Tokens.Check(token, audiences)
}

// own are those of the audiences that are the API server's own: tokens that name
// none are for it.
func (a *Authenticator) own(audiences []string) []string {
	if a.Tokens == nil || len(audiences) == 0 {
		return nil
	}
	var out []string
	for _, x := range audiences {
		if slices.Contains(a.Tokens.Audiences, x) {
			out = append(out, x)
		}
	}
	return out
}

func userOf(cert *x509.Certificate) (*authenticationv1.UserInfo, error) {
	if cert.Subject.CommonName == "" {
		return nil, errors.Join(ErrUnauthenticated, errors.New("the client certificate has no common name"))
	}
	groups := append(slices.Clone(cert.Subject.Organization), GroupAuthenticated)
	return &authenticationv1.UserInfo{Username: cert.Subject.CommonName, Groups: groups}, nil
}

// Component returns the identity of a part of knarr that runs in this process.
func Component(name string, groups ...string) *authenticationv1.UserInfo {
	return &authenticationv1.UserInfo{Username: name, Groups: append(groups, GroupAuthenticated)}
}

// proxied returns the user that a front proxy names.
func proxied(r *http.Request, cert *x509.Certificate) (*authenticationv1.UserInfo, error) {
	const extra = "X-Remote-Extra-"
	name := r.Header.Get("X-Remote-User")
	if cert.Subject.CommonName != FrontProxyName || name == "" {
		return nil, errors.Join(ErrUnauthenticated, errors.New("the front proxy's certificate is not the right one, or names no user"))
	}
	u := &authenticationv1.UserInfo{Username: name, UID: r.Header.Get("X-Remote-Uid"), Groups: slices.Clone(r.Header.Values("X-Remote-Group"))}
	for key, values := range r.Header {
		key, ok := strings.CutPrefix(key, extra)
		if !ok {
			continue
		}
		if plain, err := url.PathUnescape(key); err == nil {
			key = plain
		}
		if u.Extra == nil {
			u.Extra = map[string]authenticationv1.ExtraValue{}
		}
		u.Extra[strings.ToLower(key)] = values
	}
	for key := range r.Header {
		if strings.HasPrefix(key, "X-Remote-") {
			r.Header.Del(key)
		}
	}
	if name != "system:anonymous" && !slices.Contains(u.Groups, GroupAuthenticated) {
		u.Groups = append(u.Groups, GroupAuthenticated)
	}
	return u, nil
}
