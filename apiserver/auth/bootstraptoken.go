package auth

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
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

const (
	bootstrapType   corev1.SecretType = "bootstrap.kubernetes.io/token"
	bootstrapPrefix                   = "bootstrap-token-"
	userBootstrap                     = "system:bootstrap:"
	groupBootstrap                    = "system:bootstrappers"
)

var (
	bootstrapToken  = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
	bootstrapGroups = regexp.MustCompile(`^system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]$`)
)

// Check implements Bearer.
func (b *BootstrapTokens) Check(_ context.Context, token string) (*authenticationv1.UserInfo, error) {
	parts := bootstrapToken.FindStringSubmatch(token)
	if parts == nil {
		return nil, ErrOtherToken
	}
	id, secret := parts[1], parts[2]
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
		if !bootstrapGroups.MatchString(g) {
			return nil, fmt.Errorf("bootstrap token %s: its group %q does not begin with system:bootstrappers:", id, g)
		}
		u.Groups = append(u.Groups, g)
	}
	u.Groups = append(u.Groups, GroupAuthenticated)
	return u, nil
}

// SecretNamespace is where bootstrap tokens are.
const SecretNamespace = metav1.NamespaceSystem
