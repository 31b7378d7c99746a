package cmd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"knarr.dev/knarr/agent/server"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
)

// kubeletUser is who sends a request to the agent's server: whom the client
// certificate names, or whose the bearer token is, which token tells.
func kubeletUser(r *http.Request, token func(ctx context.Context, token string) (*authenticationv1.UserInfo, error)) (*authenticationv1.UserInfo, error) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return (&auth.Authenticator{}).Authenticate(r)
	}
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if bearer = strings.TrimSpace(bearer); !ok || bearer == "" {
		return nil, server.Unauthenticated(errors.New("a client certificate or a bearer token is required"))
	}
	user, err := token(r.Context(), bearer)
	if err != nil {
		return nil, server.Unauthenticated(err)
	}
	return user, nil
}

// For how long the API's word on a token is trusted, as with kubelets.
const (
	tokenKnownFor = 2 * time.Minute
	maxTokens     = 1024
)

// tokenReviewer asks the API whose bearer tokens are.
type tokenReviewer struct {
	client client.Interface
	now    func() time.Time

	mu    sync.Mutex
	known map[[sha256.Size]byte]knownToken
}

type knownToken struct {
	user  *authenticationv1.UserInfo
	until time.Time
}

func (v *tokenReviewer) user(ctx context.Context, token string) (*authenticationv1.UserInfo, error) {
	key := sha256.Sum256([]byte(token))
	v.mu.Lock()
	have, ok := v.known[key]
	v.mu.Unlock()
	if ok && v.now().Before(have.until) {
		return have.user, nil
	}
	obj, err := v.client.Create(ctx, client.Key{Resource: authenticationv1.SchemeGroupVersion.WithResource("tokenreviews")},
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}})
	if err != nil {
		return nil, fmt.Errorf("ask the API server whose the token is: %w", err)
	}
	answer, ok := obj.(*authenticationv1.TokenReview)
	if !ok {
		return nil, fmt.Errorf("ask the API server whose the token is: it answered a %T", obj)
	}
	if !answer.Status.Authenticated {
		return nil, errors.New("the API server does not know the token")
	}
	user := answer.Status.User
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil || len(v.known) >= maxTokens {
		v.known = map[[sha256.Size]byte]knownToken{}
	}
	v.known[key] = knownToken{&user, v.now().Add(tokenKnownFor)}
	return &user, nil
}
