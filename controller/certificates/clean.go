package certificates

import (
	"context"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// How long requests stay: after the verdict or the failure, and without a verdict.
const (
	decidedFor = time.Hour
	pendingFor = 24 * time.Hour
)

// NewCleaner declares the controller that removes old requests. Keys are requests.
func NewCleaner() engine.Controller {
	return engine.Controller{
		Name:    "certificatesigningrequest-cleaner-controller",
		Watches: []engine.Watch{{Resource: requests, Keys: engine.Self}},
		Writes:  []engine.Write{{Resource: requests, Verbs: []string{"delete"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				r, ok := client.Cached[*certificatesv1.CertificateSigningRequest](env.Cache(requests), "", key.Name)
				if !ok {
					return 0, nil
				}
				if wait := dueAt(r).Sub(env.Clock.Now()); wait > 0 {
					return wait, nil
				}
				err := env.Client.Delete(ctx, client.Key{Resource: requests, Name: key.Name}, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &r.UID}})
				if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
					return 0, nil
				}
				return 0, err
			}
		},
	}
}

// dueAt is when a request goes.
func dueAt(r *certificatesv1.CertificateSigningRequest) time.Time {
	due := r.CreationTimestamp.Add(pendingFor)
	for _, c := range r.Status.Conditions {
		if at := c.LastUpdateTime.Add(decidedFor); at.Before(due) {
			due = at
		}
	}
	return due
}
