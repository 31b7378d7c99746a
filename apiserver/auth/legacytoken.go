package auth

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// legacyIssuer is who issues the tokens that are kept in secrets.
const legacyIssuer = "kubernetes/serviceaccount"

// Labels of the secrets of tokens.
const (
	LabelLastUsed     = "kubernetes.io/legacy-token-last-used"     // YYYY-MM-DD, UTC
	LabelInvalidSince = "kubernetes.io/legacy-token-invalid-since" // YYYY-MM-DD, UTC
)

type legacyClaims struct {
	Issuer     string    `json:"iss"`
	Subject    string    `json:"sub"`
	Namespace  string    `json:"kubernetes.io/serviceaccount/namespace"`
	SecretName string    `json:"kubernetes.io/serviceaccount/secret.name"`
	Name       string    `json:"kubernetes.io/serviceaccount/service-account.name"`
	UID        types.UID `json:"kubernetes.io/serviceaccount/service-account.uid"`
}

// IssueLegacy signs the token that the secret of a service account keeps. It does
// not expire: it holds as long as both objects exist.
func (t *Tokens) IssueLegacy(namespace, secret, serviceAccount string, uid types.UID) (string, error) {
	token, err := jwt.Signed(t.signer).Claims(legacyClaims{
		Issuer: legacyIssuer, Subject: UserServiceAccount + namespace + ":" + serviceAccount,
		Namespace: namespace, SecretName: secret, Name: serviceAccount, UID: uid,
	}).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign a token for service account %s/%s: %w", namespace, serviceAccount, err)
	}
	return token, nil
}

// LegacyTokens recognises the tokens of service accounts that are kept in secrets
// of the type kubernetes.io/service-account-token.
//
// See https://kubernetes.io/docs/concepts/configuration/secret/#service-account-token-secrets
type LegacyTokens struct {
	Tokens *Tokens
	// Secret returns a secret, or nil.
	Secret func(namespace, name string) *corev1.Secret
	// ServiceAccount returns a service account, or nil.
	ServiceAccount func(namespace, name string) *corev1.ServiceAccount
	// Used is told that a token has been used on a day that its secret's label does
	// not say.
	Used func(ctx context.Context, secret *corev1.Secret, day string)
	Now  func() time.Time
}

// Check implements Bearer.
func (l *LegacyTokens) Check(ctx context.Context, token string) (*authenticationv1.UserInfo, error) {
	if !claimsLegacy(token) {
		return nil, ErrOtherToken
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, ErrOtherToken
	}
	var c legacyClaims
	if err := l.Tokens.verify(parsed, &c); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if c.Issuer != legacyIssuer {
		return nil, ErrOtherToken
	}
	s := l.Secret(c.Namespace, c.SecretName)
	switch {
	case s == nil || s.DeletionTimestamp != nil:
		return nil, errors.New("Token has been invalidated") //nolint:staticcheck // Kubernetes' words
	case subtle.ConstantTimeCompare(s.Data[corev1.ServiceAccountTokenKey], []byte(token)) != 1:
		return nil, errors.New("Token does not match server's copy") //nolint:staticcheck // Kubernetes' words
	case s.Labels[LabelInvalidSince] != "":
		return nil, fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the 'kubernetes.io/legacy-token-invalid-since' label from the secret to temporarily allow use of this token",
			c.Namespace, c.SecretName, c.Namespace, c.Name)
	}
	sa := l.ServiceAccount(c.Namespace, c.Name)
	switch {
	case sa == nil || sa.DeletionTimestamp != nil:
		return nil, fmt.Errorf("ServiceAccount %s/%s has been deleted", c.Namespace, c.Name) //nolint:staticcheck // Kubernetes' words
	case sa.UID != c.UID:
		return nil, fmt.Errorf("ServiceAccount UID (%s) does not match claim (%s)", sa.UID, c.UID) //nolint:staticcheck // Kubernetes' words
	}
	if day := l.Now().UTC().Format(time.DateOnly); s.Labels[LabelLastUsed] != day && l.Used != nil {
		l.Used(ctx, s, day)
	}
	return &authenticationv1.UserInfo{
		Username: UserServiceAccount + c.Namespace + ":" + c.Name, UID: string(c.UID),
		Groups: []string{GroupServiceAccounts, GroupServiceAccounts + ":" + c.Namespace, GroupAuthenticated},
	}, nil
}

// claimsLegacy looks at a token without trust, so that others cost next to nothing.
func claimsLegacy(token string) bool {
	_, rest, ok := strings.Cut(token, ".")
	payload, _, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(payload)
	return err == nil && bytes.Contains(b, []byte(legacyIssuer))
}
