package certificates

import (
	"context"
	"fmt"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/api/certificates"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

var accessReviews = authorizationv1.SchemeGroupVersion.WithResource("subjectaccessreviews")

// NewApproving declares the controller that approves agents' requests for the
// certificates with which they use the API, if who asks may create
// certificatesigningrequests/selfnodeclient (for its own user) or /nodeclient (for
// any node's). Keys are requests.
func NewApproving() engine.Controller {
	return engine.Controller{
		Name:    "certificatesigningrequest-approving-controller",
		Watches: []engine.Watch{{Resource: requests, Keys: engine.Self}},
		Writes: []engine.Write{
			{Resource: requests, Subresource: "approval", Verbs: []string{"update"}},
			{Resource: signers, Verbs: []string{"approve"}},
			{Resource: accessReviews, Verbs: []string{"create"}},
		},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				return 0, approve(ctx, env, key.Name)
			}
		},
	}
}

func approve(ctx context.Context, env *engine.Env, name string) error {
	r, ok := client.Cached[*certificatesv1.CertificateSigningRequest](env.Cache(requests), "", name)
	if !ok || len(r.Status.Certificate) > 0 || r.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName ||
		certificates.Has(r, certificatesv1.CertificateApproved) || certificates.Has(r, certificatesv1.CertificateDenied) {
		return nil
	}
	req, err := certificates.ParseRequest(r.Spec.Request)
	if err != nil || kubeletClient(req, r.Spec.Usages) != nil {
		return nil // not such a request: a person decides
	}
	for _, as := range []struct{ subresource, message string }{
		{"selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."},
		{"nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."},
	} {
		if as.subresource == "selfnodeclient" && req.Subject.CommonName != r.Spec.Username {
			continue
		}
		may, err := allowed(ctx, env, r, as.subresource)
		if err != nil {
			return fmt.Errorf("ask whether request %s may be approved: %w", name, err)
		}
		if !may {
			continue
		}
		next := r.DeepCopy()
		next.Status.Conditions = append(next.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved", Message: as.message})
		_, err = env.Client.Update(ctx, client.Key{Resource: requests, Name: name}.Sub("approval"), next)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	return nil
}

func allowed(ctx context.Context, env *engine.Env, r *certificatesv1.CertificateSigningRequest, subresource string) (bool, error) {
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range r.Spec.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: r.Spec.Username, UID: r.Spec.UID, Groups: r.Spec.Groups, Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: requests.Group, Version: "*", Resource: requests.Resource, Subresource: subresource, Verb: "create"}}}
	out, err := env.Client.Create(ctx, client.Key{Resource: accessReviews}, review)
	if err != nil {
		return false, err
	}
	answer, ok := out.(*authorizationv1.SubjectAccessReview)
	return ok && answer.Status.Allowed, nil
}
