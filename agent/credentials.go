package agent

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/credentials"
	"knarr.dev/knarr/agent/volumes"
	"knarr.dev/knarr/client"
)

// accounts tells credential providers of service accounts.
type accounts struct {
	client client.Interface
	*volumes.Manager
}

// Account implements credentials.Accounts.
func (a accounts) Account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return client.Get[*corev1.ServiceAccount](ctx, a.client, client.Key{Resource: client.ServiceAccounts, Namespace: namespace, Name: name})
}

// findKeys finds the node's own credentials for an image.
func (a *Agent) findKeys(ctx context.Context, image string, pod *corev1.Pod) ([]credentials.Credential, error) {
	return a.keys.Find(ctx, image, pod)
}

// findAccount finds the service account with which a pod may have pulled an image.
func (a *Agent) findAccount(ctx context.Context, image string, pod *corev1.Pod) (*credentials.Origin, error) {
	return a.keys.Account(ctx, image, pod)
}
