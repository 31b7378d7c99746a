// Package certificates declares requests for certificates.
package certificates

import (
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// Request is the kind's full name.
var Request = schema.GroupVersionKind{Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest"}

// CertificateSigningRequest declares certificates.k8s.io/v1
// CertificateSigningRequest.
func CertificateSigningRequest() *kind.Kind {
	return &kind.Kind{
		Group: Request.Group, Version: Request.Version, Kind: Request.Kind, Resource: "certificatesigningrequests", ShortNames: []string{"csr"}, HasStatus: true, NoGeneration: true,
		ValidName: anyName,
		PrepareUpdate: kind.Pair(func(r, old *certificatesv1.CertificateSigningRequest) {
			r.Spec, r.Status = *old.Spec.DeepCopy(), *old.Status.DeepCopy()
		}),
		PrepareStatus: kind.Pair(prepareStatus),
		Others: []kind.Subresource{{
			Name: "approval", GVK: schema.GroupVersionKind{Kind: Request.Kind}, Verbs: []string{"get", "patch", "update"},
			Prepare: kind.Pair(func(r, old *certificatesv1.CertificateSigningRequest) {
				kind.KeepAllButStatus(r, old)
				r.Status.Certificate = slices.Clone(old.Status.Certificate)
			}),
			Validate: kind.CheckChange(validateApproval),
		}},
		Validate:       kind.Check(validateRequest),
		ValidateUpdate: kind.CheckChange(validateRequestUpdate),
		ValidateStatus: kind.CheckChange(validateStatus),
		Fields: kind.FieldsOf(func(r *certificatesv1.CertificateSigningRequest) fields.Set {
			return fields.Set{"spec.signerName": r.Spec.SignerName}
		}),
		Columns: columns.Named(
			columns.Age(),
			columns.Text("SignerName", "Who shall sign the certificate."),
			columns.Text("Requestor", "Who asks for it."),
			columns.Text("RequestedDuration", "How long it shall hold."),
			columns.Text("Condition", "Whether it was approved, and issued."),
		),
		Row: kind.RowOf(func(r *certificatesv1.CertificateSigningRequest, now time.Time) []any {
			asked := columns.None
			if s := r.Spec.ExpirationSeconds; s != nil {
				asked = duration.HumanDuration(time.Duration(*s) * time.Second)
			}
			return []any{r.Name, columns.Created(r, now), columns.Or(r.Spec.SignerName, columns.None), r.Spec.Username, asked, state(r)}
		}),
	}
}

// anyName: a request's name needs only to fit into a path.
func anyName(string, bool) []string { return nil }

// prepareStatus keeps all but the status, and in it the words of a verdict.
func prepareStatus(r, old *certificatesv1.CertificateSigningRequest) {
	kind.KeepAllButStatus(r, old)
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		was := conditionsOf(old, t)
		for i := range r.Status.Conditions {
			if c := &r.Status.Conditions[i]; c.Type == t && len(was) > 0 {
				*c, was = was[0], was[1:]
			}
		}
	}
}

func isVerdict(t certificatesv1.RequestConditionType) bool {
	return t == certificatesv1.CertificateApproved || t == certificatesv1.CertificateDenied
}

// Has tells whether a condition of the type is true.
func Has(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	for _, c := range r.Status.Conditions {
		if c.Type == t && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func state(r *certificatesv1.CertificateSigningRequest) string {
	var words []string
	switch {
	case Has(r, certificatesv1.CertificateDenied):
		words = append(words, "Denied")
	case Has(r, certificatesv1.CertificateApproved):
		words = append(words, "Approved")
	default:
		words = append(words, "Pending")
	}
	if Has(r, certificatesv1.CertificateFailed) {
		words = append(words, "Failed")
	}
	if len(r.Status.Certificate) > 0 {
		words = append(words, "Issued")
	}
	return strings.Join(words, ",")
}
