// Package bootstraptokens removes the secrets of bootstrap tokens that have
// expired.
package bootstraptokens

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// secretType is that of bootstrap tokens' secrets, in kube-system.
const secretType corev1.SecretType = "bootstrap.kubernetes.io/token"

// New declares the controller. Keys are secrets.
func New() engine.Controller {
	return engine.Controller{
		Name: "token-cleaner-controller",
		Watches: []engine.Watch{{Resource: client.Secrets, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
			s := ev.Object.(*corev1.Secret)
			if s.Type != secretType || s.Namespace != metav1.NamespaceSystem || ev.Type == client.Deleted {
				return nil
			}
			return []engine.Key{engine.KeyOf(s)}
		}}},
		Writes: []engine.Write{{Resource: client.Secrets, Verbs: []string{"delete"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				s, ok := client.Cached[*corev1.Secret](env.Cache(client.Secrets), key.Namespace, key.Name)
				if !ok || s.Type != secretType {
					return 0, nil
				}
				text := string(s.Data["expiration"])
				if text == "" {
					return 0, nil // it holds for ever
				}
				at, err := time.Parse(time.RFC3339, text)
				if err == nil { // what cannot be read counts as expired, as it does for authentication
					if wait := at.Sub(env.Clock.Now()); wait > 0 {
						return wait, nil
					}
				}
				err = env.Client.Delete(ctx, client.Key{Resource: client.Secrets, Namespace: key.Namespace, Name: key.Name},
					metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion}})
				if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
					return 0, nil
				}
				return 0, err
			}
		},
	}
}
