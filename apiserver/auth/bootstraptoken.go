package auth

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bearer recognises the users behind bearer tokens of one sort.
type Bearer interface {
	// Check returns the user, or ErrOtherToken for tokens of another sort.
	Check(ctx context.Context, token string) (*authenticationv1.UserInfo, error)
}

// ErrOtherToken: the token is of another sort.
var ErrOtherToken = errors.New("not a token of this sort")

// BootstrapTokens recognises bootstrap tokens, ID.SECRET, which are secrets of the
// type bootstrap.kubernetes.io/token in kube-system.
type BootstrapTokens struct {
	// Secret returns a secret of kube-system, or nil.
	Secret func(name string) *corev1.Secret
	Now    func() time.Time
}

const bootstrapType corev1.SecretType = "bootstrap.kubernetes.io/token"

const (
	bootstrapPrefix = "bootstrap-token-"
	userBootstrap   = "system:bootstrap:"
	groupBootstrap  = "system:bootstrappers"
)

// Lengths of a bootstrap token's parts and of what follows its groups' prefix.
const (
	tokenID, tokenSecret = 6, 16
	longestGroup         = 256
)

const lettersAndDigits = "abcdefghijklmnopqrstuvwxyz0123456789"

func consistsOf(s, characters string) bool { return strings.Trim(s, characters) == "" }

// splitBootstrapToken splits ID.SECRET; ok is false for other tokens.
func splitBootstrapToken(token string) (id, secret string, ok bool) {
	id, secret, _ = strings.Cut(token, ".")
	ok = len(id) == tokenID && len(secret) == tokenSecret && consistsOf(id+secret, lettersAndDigits)
	return id, secret, ok
}

// isBootstrapGroup tells the groups that such tokens may give their users.
func isBootstrapGroup(g string) bool {
	name, ok := strings.CutPrefix(g, "system:bootstrappers:")
	return ok && name != "" && len(name) <= longestGroup && consistsOf(name, lettersAndDigits+":-") &&
		consistsOf(name[len(name)-1:], lettersAndDigits)
}

// Check implements Bearer.
func (b *BootstrapTokens) Check(_ context.Context, token string) (*authenticationv1.UserInfo, error) {
	id, secret, ok := splitBootstrapToken(token)
	if !ok {
		return nil, ErrOtherToken
	}
	s := b.Secret(bootstrapPrefix + id)
	if s == nil || s.DeletionTimestamp != nil || s.Type != bootstrapType || string(s.Data["token-id"]) != id ||
		subtle.ConstantTimeCompare(s.Data["token-secret"], []byte(secret)) != 1 {
		return nil, errors.New("bootstrap token: no such token")
	}
	if string(s.Data["usage-bootstrap-authentication"]) != "true" {
		return nil, fmt.Errorf("bootstrap token %s: is not for authentication", id)
	}
	if text := string(s.Data["expiration"]); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil || !b.Now().Before(at) {
			return nil, fmt.Errorf("bootstrap token %s: has expired", id)
		}
	}
	u := &authenticationv1.UserInfo{Username: userBootstrap + id, Groups: []string{groupBootstrap}}
	for _, g := range strings.Split(string(s.Data["auth-extra-groups"]), ",") {
		if g = strings.TrimSpace(g); g == "" {
			continue
		}
		if !isBootstrapGroup(g) {
			return nil, fmt.Errorf("bootstrap token %s: its group %q does not begin with system:bootstrappers:", id, g)
		}
		u.Groups = append(u.Groups, g)
	}
	u.Groups = append(u.Groups, GroupAuthenticated)
	return u, nil
}

// SecretNamespace is where bootstrap tokens are.
const SecretNamespace = metav1.NamespaceSystem
