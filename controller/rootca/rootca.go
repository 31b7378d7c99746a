// Package rootca publishes the cluster's certificate authority to every namespace
// as the ConfigMap kube-root-ca.crt, which pods mount with their tokens.
package rootca

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

const (
	name        = "kube-root-ca.crt"
	annotation  = "kubernetes.io/description"
	description = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

// New declares the controller; ca is the PEM bundle. Keys are namespaces.
func New(ca []byte) engine.Controller {
	return engine.Controller{
		Name: "root-ca-certificate-publisher-controller",
		Watches: []engine.Watch{
			{Resource: client.Namespaces, Keys: engine.Self},
			{Resource: client.ConfigMaps, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				if ev.Object.GetName() != name {
					return nil
				}
				return []engine.Key{{Name: ev.Object.GetNamespace()}}
			}},
		},
		Writes: []engine.Write{{Resource: client.ConfigMaps, Verbs: []string{"create", "update"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				return 0, publish(ctx, env, key.Name, map[string]string{"ca.crt": string(ca)})
			}
		},
	}
}

func publish(ctx context.Context, env *engine.Env, namespace string, data map[string]string) error {
	ns, ok := client.Cached[*corev1.Namespace](env.Cache(client.Namespaces), "", namespace)
	if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return nil
	}
	k := client.Key{Resource: client.ConfigMaps, Namespace: namespace, Name: name}
	old, ok := client.Cached[*corev1.ConfigMap](env.Cache(client.ConfigMaps), namespace, name)
	var err error
	switch {
	case !ok:
		_, err = env.Client.Create(ctx, k, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{annotation: description}}, Data: data})
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case !equality.Semantic.DeepEqual(old.Data, data) || old.Annotations[annotation] == "":
		next := old.DeepCopy()
		next.Data = data
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[annotation] = description
		_, err = env.Client.Update(ctx, k, next)
	}
	if err != nil {
		return fmt.Errorf("publishing the certificate authority to namespace %s: %w", namespace, err)
	}
	return nil
}
