// Package auth says who a request comes from and what it may do.
package auth

import (
	"crypto/x509"
	"errors"
	"net/http"
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
)

// ErrUnauthenticated: the request shows no credentials, or bad ones.
var ErrUnauthenticated = errors.New("Unauthorized")

// Authenticator recognises who sends a request.
type Authenticator struct {
	// Tokens checks bearer tokens; nil accepts none.
	Tokens *Tokens
}

// Authenticate returns the user behind a request: of its client certificate
// (common name and organisations, verified by TLS against the client CA) or of
// its bearer token.
func (a *Authenticator) Authenticate(r *http.Request) (*authenticationv1.UserInfo, error) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return userOf(r.TLS.VerifiedChains[0][0])
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || a.Tokens == nil {
		return nil, ErrUnauthenticated
	}
	user, _, err := a.Tokens.Check(strings.TrimSpace(token), nil)
	if err != nil {
		return nil, errors.Join(ErrUnauthenticated, err)
	}
	return user, nil
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
