package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/api/certificates"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
)

// certificateRequest writes into a request for a certificate who made it, and
// when its conditions changed; it lets only those approve and sign it who may
// do so for its signer, and nobody ask for a certificate of system:masters from
// the signer of clients.
func certificateRequest(d Deps) registry.Admission {
	return registry.Admission{
		Name: "CertificateSigningRequest",
		Mutate: func(_ context.Context, a *registry.Attributes) error {
			r, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
			if !ok {
				return nil
			}
			now := metav1.NewTime(d.Now())
			switch a.Operation {
			case registry.Create:
				r.Spec.Username, r.Spec.UID, r.Spec.Groups = a.User.Username, a.User.UID, slices.Clone(a.User.Groups)
				r.Spec.Extra = nil
				for name, values := range maps.All(a.User.Extra) {
					if r.Spec.Extra == nil {
						r.Spec.Extra = map[string]certificatesv1.ExtraValue{}
					}
					r.Spec.Extra[name] = certificatesv1.ExtraValue(values)
				}
			case registry.Update:
				stampConditions(r, a.Old.(*certificatesv1.CertificateSigningRequest), now)
			}
			return nil
		},
		Validate: func(_ context.Context, a *registry.Attributes) error {
			r, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
			if !ok {
				return nil
			}
			switch {
			case a.Operation == registry.Create:
				return notMasters(a, r)
			case a.Operation == registry.Update && a.Subresource == "approval":
				return d.maySign(a, r.Spec.SignerName, "approve")
			case a.Operation == registry.Update && a.Subresource == "status":
				old := a.Old.(*certificatesv1.CertificateSigningRequest)
				if !slices.Equal(old.Status.Certificate, r.Status.Certificate) || len(old.Status.Conditions) != len(r.Status.Conditions) {
					return d.maySign(a, r.Spec.SignerName, "sign")
				}
			}
			return nil
		},
	}
}

// stampConditions fills the times of conditions that the client left out.
func stampConditions(r, old *certificatesv1.CertificateSigningRequest, now metav1.Time) {
	for i := range r.Status.Conditions {
		c := &r.Status.Conditions[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = now
		}
		if !c.LastTransitionTime.IsZero() {
			continue
		}
		c.LastTransitionTime = now
		for _, o := range old.Status.Conditions {
			if o.Type == c.Type && o.Status == c.Status && !o.LastTransitionTime.IsZero() {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
	}
}

// maySign asks for the verb on the signer, or on all of the signer's domain.
func (d Deps) maySign(a *registry.Attributes, signer, verb string) error {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		if d.Authorize(&auth.Action{User: a.User, Verb: verb, Group: certificates.Request.Group, Version: "*", Resource: "signers", Name: name}) {
			return nil
		}
	}
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf("user not permitted to %s requests with signerName %q", verb, signer))
}

// notMasters: a certificate of system:masters cannot be taken back.
func notMasters(a *registry.Attributes, r *certificatesv1.CertificateSigningRequest) error {
	if r.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	req, err := certificates.ParseRequest(r.Spec.Request)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if slices.Contains(req.Subject.Organization, auth.GroupMasters) {
		return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, errors.New("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"))
	}
	return nil
}

func commonName(r *certificatesv1.CertificateSigningRequest) (string, error) {
	req, err := certificates.ParseRequest(r.Spec.Request)
	if err != nil {
		return "", err
	}
	return req.Subject.CommonName, nil
}
