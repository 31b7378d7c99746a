// Package serviceaccount keeps the service account "default" in every namespace.
package serviceaccount

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

const name = "default"

// New declares the controller. Keys are namespaces.
func New() engine.Controller {
	return engine.Controller{
		Name: "serviceaccount-controller",
		Watches: []engine.Watch{
			{Resource: client.Namespaces, Keys: engine.Self},
			{Resource: client.ServiceAccounts, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				if ev.Type != client.Deleted || ev.Object.GetName() != name {
					return nil
				}
				return []engine.Key{{Name: ev.Object.GetNamespace()}}
			}},
		},
		Writes: []engine.Write{{Resource: client.ServiceAccounts, Verbs: []string{"create"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				ns, ok := client.Cached[*corev1.Namespace](env.Cache(client.Namespaces), "", key.Name)
				if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
					return 0, nil
				}
				if _, ok := env.Cache(client.ServiceAccounts).Get(ns.Name, name); ok {
					return 0, nil
				}
				_, err := env.Client.Create(ctx, client.Key{Resource: client.ServiceAccounts, Namespace: ns.Name, Name: name},
					&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name}})
				if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
					return 0, fmt.Errorf("creating the default service account of namespace %s: %w", ns.Name, err)
				}
				return 0, nil
			}
		},
	}
}
