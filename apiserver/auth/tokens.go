package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// Tokens issues and checks service account tokens: JWTs with the claims of
// Kubernetes' bound tokens, signed with ES256.
type Tokens struct {
	Issuer    string
	Audiences []string // the API server's own; the first is the default
	Now       func() time.Time
	// Live tells whether the objects that a token is bound to still exist.
	Live func(Bound) error

	key    *ecdsa.PrivateKey
	former []*ecdsa.PublicKey // they verify what they signed once
	signer jose.Signer
}

// Bound names what a token belongs to; Pod and Node may be empty.
type Bound struct {
	Namespace      string       `json:"namespace"`
	ServiceAccount NamedObject  `json:"serviceaccount"`
	Pod            *NamedObject `json:"pod,omitempty"`
	Node           *NamedObject `json:"node,omitempty"`
	Secret         *NamedObject `json:"secret,omitempty"`
}

// NamedObject is an object with its UID.
type NamedObject struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid,omitempty"`
}

type claims struct {
	jwt.Claims
	Kubernetes Bound `json:"kubernetes.io"`
}

// OpenTokens reads the signing key in file, making it at first use. Former keys
// are in files of the same name with a further suffix, such as FILE.1: what they
// signed holds as long as they are there.
func OpenTokens(file, issuer string, now func() time.Time) (*Tokens, error) {
	key, err := loadKey(file)
	if err != nil {
		return nil, fmt.Errorf("service account key %s: %w", file, err)
	}
	t := &Tokens{Issuer: issuer, Audiences: []string{issuer}, Now: now, key: key}
	old, err := filepath.Glob(file + ".*")
	if err != nil {
		return nil, fmt.Errorf("former service account keys: %w", err)
	}
	for _, f := range old {
		k, err := loadKey(f)
		if err != nil {
			return nil, fmt.Errorf("former service account key %s: %w", f, err)
		}
		t.former = append(t.former, &k.PublicKey)
	}
	t.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: t.KeyID()}}, nil)
	if err != nil {
		return nil, fmt.Errorf("service account key %s: %w", file, err)
	}
	return t, nil
}

func loadKey(file string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(file)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no PEM block: restore the file from a backup")
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

func makeKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// KeyID names the signing key in the key set that clients may fetch.
func (t *Tokens) KeyID() string { return keyID(&t.key.PublicKey) }

func keyID(key *ecdsa.PublicKey) string {
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// KeySet are the public halves of the keys as a JSON Web Key Set (RFC 7517), with
// which others check tokens without asking the API server.
func (t *Tokens) KeySet() (set jose.JSONWebKeySet) {
	for _, k := range t.publicKeys() {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k, KeyID: keyID(k), Algorithm: string(jose.ES256), Use: "sig"})
	}
	return set
}

func (t *Tokens) publicKeys() []*ecdsa.PublicKey {
	return append([]*ecdsa.PublicKey{&t.key.PublicKey}, t.former...)
}

// verify reads a token's claims with the key that has signed it.
func (t *Tokens) verify(token *jwt.JSONWebToken, c any) (err error) {
	for _, k := range t.publicKeys() {
		if err = token.Claims(k, c); err == nil {
			return nil
		}
	}
	return err
}

// Issue signs a token; audiences nil means the API server's own.
func (t *Tokens) Issue(b Bound, audiences []string, ttl time.Duration) (token string, expires time.Time, err error) {
	if len(audiences) == 0 {
		audiences = t.Audiences
	}
	now := t.Now()
	expires = now.Add(ttl)
	token, err = jwt.Signed(t.signer).Claims(claims{
		Claims: jwt.Claims{
			Issuer: t.Issuer, Subject: UserServiceAccount + b.Namespace + ":" + b.ServiceAccount.Name,
			Audience: audiences, Expiry: jwt.NewNumericDate(expires), NotBefore: jwt.NewNumericDate(now),
			IssuedAt: jwt.NewNumericDate(now), ID: string(uuid.NewUUID()),
		},
		Kubernetes: b,
	}).Serialize()
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign a token for service account %s/%s: %w", b.Namespace, b.ServiceAccount.Name, err)
	}
	return token, expires, nil
}

// Check verifies a token for one of the audiences (nil: the API server's own)
// and returns the user, and the audiences that the token and the question share.
func (t *Tokens) Check(token string, audiences []string) (*authenticationv1.UserInfo, []string, error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, nil, fmt.Errorf("token: %w", err)
	}
	var c claims
	if err := t.verify(parsed, &c); err != nil {
		return nil, nil, fmt.Errorf("token: %w", err)
	}
	if err := c.ValidateWithLeeway(jwt.Expected{Issuer: t.Issuer, Time: t.Now()}, 10*time.Second); err != nil {
		return nil, nil, fmt.Errorf("token: %w", err)
	}
	if len(audiences) == 0 {
		audiences = t.Audiences
	}
	var shared []string
	for _, a := range audiences {
		if slices.Contains(c.Audience, a) {
			shared = append(shared, a)
		}
	}
	if len(shared) == 0 {
		return nil, nil, fmt.Errorf("token audiences %q is invalid for the target audiences %q", c.Audience, audiences)
	}
	if t.Live != nil {
		if err := t.Live(c.Kubernetes); err != nil {
			return nil, nil, fmt.Errorf("token: %w", err)
		}
	}
	return c.user(), shared, nil
}

func (c *claims) user() *authenticationv1.UserInfo {
	b := c.Kubernetes
	u := &authenticationv1.UserInfo{
		Username: UserServiceAccount + b.Namespace + ":" + b.ServiceAccount.Name,
		UID:      string(b.ServiceAccount.UID),
		Groups:   []string{GroupServiceAccounts, GroupServiceAccounts + ":" + b.Namespace, GroupAuthenticated},
		Extra:    map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/credential-id": {"JTI=" + c.ID}},
	}
	if b.Pod != nil {
		u.Extra["authentication.kubernetes.io/pod-name"] = authenticationv1.ExtraValue{b.Pod.Name}
		u.Extra["authentication.kubernetes.io/pod-uid"] = authenticationv1.ExtraValue{string(b.Pod.UID)}
	}
	if b.Node != nil {
		u.Extra["authentication.kubernetes.io/node-name"] = authenticationv1.ExtraValue{b.Node.Name}
		if b.Node.UID != "" {
			u.Extra["authentication.kubernetes.io/node-uid"] = authenticationv1.ExtraValue{string(b.Node.UID)}
		}
	}
	return u
}

// ServiceAccount splits a service account's user name.
func ServiceAccount(user string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, UserServiceAccount)
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, ":")
}
