package bootstraptokens

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

const (
	infoName        = "cluster-info"
	infoKey         = "kubeconfig"
	signaturePrefix = "jws-kubeconfig-"
)

// NewSigning declares the controller that signs the ConfigMap cluster-info in
// kube-public with every bootstrap token that is meant for it, so that a machine
// that knows a token can tell whether what it reads there is true. There is one key.
//
// See https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/#configmap-signing
func NewSigning() engine.Controller {
	info := engine.Key{Namespace: metav1.NamespacePublic, Name: infoName}
	return engine.Controller{
		Name: "bootstrap-signer-controller",
		Watches: []engine.Watch{
			{Resource: client.ConfigMaps, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				if engine.KeyOf(ev.Object) != info {
					return nil
				}
				return []engine.Key{info}
			}},
			{Resource: client.Secrets, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				if s := ev.Object.(*corev1.Secret); s.Type != secretType || s.Namespace != metav1.NamespaceSystem {
					return nil
				}
				return []engine.Key{info}
			}},
		},
		Writes: []engine.Write{{Resource: client.ConfigMaps, Verbs: []string{"update"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return 0, signAll(ctx, env, key) }
		},
	}
}

func signAll(ctx context.Context, env *engine.Env, key engine.Key) error {
	info, ok := client.Cached[*corev1.ConfigMap](env.Cache(client.ConfigMaps), key.Namespace, key.Name)
	if !ok || info.Data[infoKey] == "" {
		return nil
	}
	data := map[string]string{}
	for k, v := range info.Data {
		if !strings.HasPrefix(k, signaturePrefix) {
			data[k] = v
		}
	}
	for _, s := range client.ListCached[*corev1.Secret](env.Cache(client.Secrets), metav1.NamespaceSystem, nil) {
		id, secret := string(s.Data["token-id"]), string(s.Data["token-secret"])
		if s.Type != secretType || s.DeletionTimestamp != nil || string(s.Data["usage-bootstrap-signing"]) != "true" ||
			id == "" || secret == "" || s.Name != "bootstrap-token-"+id || expired(s, env.Clock.Now()) {
			continue
		}
		signature, err := sign(info.Data[infoKey], id, secret)
		if err != nil {
			return fmt.Errorf("sign %s with bootstrap token %s: %w", key, id, err)
		}
		data[signaturePrefix+id] = signature
	}
	if maps.Equal(data, info.Data) {
		return nil
	}
	next := info.DeepCopy()
	next.Data = data
	if _, err := env.Client.Update(ctx, client.Key{Resource: client.ConfigMaps, Namespace: key.Namespace, Name: key.Name}, next); err != nil {
		return fmt.Errorf("sign %s: %w", key, err)
	}
	return nil
}

// expired tells whether a token is no longer believed; the cleaner deletes it.
func expired(s *corev1.Secret, now time.Time) bool {
	text := string(s.Data["expiration"])
	if text == "" {
		return false
	}
	at, err := time.Parse(time.RFC3339, text)
	return err != nil || !now.Before(at)
}

// sign returns a JWS (RFC 7515) of content, without the content: HMAC-SHA256 with
// the whole token, which is shorter than what libraries accept as a key.
func sign(content, id, secret string) (string, error) {
	b, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
	}{"HS256", id})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	header := encode(b)
	mac := hmac.New(sha256.New, []byte(id+"."+secret))
	mac.Write([]byte(header + "." + encode([]byte(content)))) // never fails
	return header + ".." + encode(mac.Sum(nil)), nil
}
