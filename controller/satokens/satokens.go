// Package satokens fills the secrets that keep a service account's token, and
// deletes them with the service account.
//
// See https://kubernetes.io/docs/concepts/configuration/secret/#service-account-token-secrets
package satokens

import (
	"bytes"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// Issuer signs the token that a secret keeps for a service account.
type Issuer interface {
	IssueLegacy(namespace, secret, serviceAccount string, uid types.UID) (token string, err error)
}

// New declares the controller; ca is the PEM bundle by which tokens' users know
// the API server. Keys are secrets.
func New(issuer Issuer, ca []byte) engine.Controller {
	return engine.Controller{
		Name: "serviceaccount-token-controller",
		Watches: []engine.Watch{
			{Resource: client.Secrets, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				if s := ev.Object.(*corev1.Secret); s.Type != corev1.SecretTypeServiceAccountToken || ev.Type == client.Deleted {
					return nil
				}
				return []engine.Key{engine.KeyOf(ev.Object)}
			}},
			{Resource: client.ServiceAccounts, Keys: func(env *engine.Env, ev client.Event) (keys []engine.Key) {
				if ev.Type == client.Modified {
					return nil
				}
				env.Cache(client.Secrets).List(ev.Object.GetNamespace(), nil, func(o client.Object) bool {
					if s := o.(*corev1.Secret); s.Type == corev1.SecretTypeServiceAccountToken && s.Annotations[corev1.ServiceAccountNameKey] == ev.Object.GetName() {
						keys = append(keys, engine.KeyOf(s))
					}
					return true
				})
				return keys
			}},
		},
		Writes: []engine.Write{{Resource: client.Secrets, Verbs: []string{"update", "delete"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				s, ok := client.Cached[*corev1.Secret](env.Cache(client.Secrets), key.Namespace, key.Name)
				if !ok || s.Type != corev1.SecretTypeServiceAccountToken || s.DeletionTimestamp != nil {
					return 0, nil
				}
				return 0, keep(ctx, env, s, issuer, ca)
			}
		},
	}
}

func keep(ctx context.Context, env *engine.Env, s *corev1.Secret, issuer Issuer, ca []byte) error {
	k := client.Key{Resource: client.Secrets, Namespace: s.Namespace, Name: s.Name}
	sa, err := account(ctx, env, s)
	if err != nil {
		return err
	}
	if sa == nil {
		err := env.Client.Delete(ctx, k, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete secret %s/%s, whose service account is gone: %w", s.Namespace, s.Name, err)
		}
		return nil
	}
	next := s.DeepCopy()
	if next.Data == nil {
		next.Data = map[string][]byte{}
	}
	changed := next.Annotations[corev1.ServiceAccountUIDKey] != string(sa.UID)
	next.Annotations[corev1.ServiceAccountUIDKey] = string(sa.UID)
	if len(ca) > 0 && !bytes.Equal(next.Data[corev1.ServiceAccountRootCAKey], ca) {
		next.Data[corev1.ServiceAccountRootCAKey], changed = ca, true
	}
	if len(next.Data[corev1.ServiceAccountNamespaceKey]) == 0 {
		next.Data[corev1.ServiceAccountNamespaceKey], changed = []byte(s.Namespace), true
	}
	if len(next.Data[corev1.ServiceAccountTokenKey]) == 0 {
		token, err := issuer.IssueLegacy(s.Namespace, s.Name, sa.Name, sa.UID)
		if err != nil {
			return fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err)
		}
		next.Data[corev1.ServiceAccountTokenKey], changed = []byte(token), true
	}
	if !changed {
		return nil
	}
	if _, err := env.Client.Update(ctx, k, next); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("fill secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// account is the service account that a secret belongs to; nil if it is gone, or
// another has its name.
func account(ctx context.Context, env *engine.Env, s *corev1.Secret) (*corev1.ServiceAccount, error) {
	name, uid := s.Annotations[corev1.ServiceAccountNameKey], types.UID(s.Annotations[corev1.ServiceAccountUIDKey])
	sa, ok := client.Cached[*corev1.ServiceAccount](env.Cache(client.ServiceAccounts), s.Namespace, name)
	if !ok {
		var err error
		sa, err = client.Get[*corev1.ServiceAccount](ctx, env.Client, client.Key{Resource: client.ServiceAccounts, Namespace: s.Namespace, Name: name})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("service account %s/%s: %w", s.Namespace, name, err)
		}
	}
	if uid != "" && sa.UID != uid {
		return nil, nil
	}
	return sa, nil
}
