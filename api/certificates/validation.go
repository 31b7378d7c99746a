package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// leastSeconds is the shortest life that may be asked for.
const leastSeconds = 600

var usages = sets.New(
	certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment, certificatesv1.UsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment, certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign,
	certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly, certificatesv1.UsageAny, certificatesv1.UsageServerAuth,
	certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning, certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME,
	certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel, certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping,
	certificatesv1.UsageOCSPSigning, certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
)

// ParseRequest reads the PEM block of a request.
func ParseRequest(b []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

func validateRequest(r *certificatesv1.CertificateSigningRequest) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if _, err := ParseRequest(r.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(spec.Child("request"), r.Spec.Request, fmt.Sprintf("%v", err)))
	}
	at := spec.Child("usages")
	if len(r.Spec.Usages) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	seen := sets.New[certificatesv1.KeyUsage]()
	for i, u := range r.Spec.Usages {
		if !usages.Has(u) {
			errs = append(errs, field.NotSupported(at.Index(i), u, sets.List(usages)))
		}
		if seen.Has(u) {
			errs = append(errs, field.Duplicate(at.Index(i), u))
		}
		seen.Insert(u)
	}
	errs = append(errs, validateSignerName(spec.Child("signerName"), r.Spec.SignerName)...)
	if s := r.Spec.ExpirationSeconds; s != nil && *s < leastSeconds {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), *s, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	return append(errs, validateConditions(r)...)
}

// validateSignerName wants a domain, one slash and a path of names and dots.
func validateSignerName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(path, "/") {
		return field.ErrorList{field.Invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	var errs field.ErrorList
	errs = append(errs, check.Each(at, domain, validation.IsDNS1123Subdomain(domain))...)
	if !strings.Contains(domain, ".") {
		errs = append(errs, field.Invalid(at, domain, "should be a domain with at least two segments separated by dots"))
	}
	errs = append(errs, check.Each(at, path, validation.IsDNS1123Subdomain(path))...)
	if longest := 253 + 1 + 63 + 1 + 253; len(name) > longest {
		errs = append(errs, field.TooLong(at, name, longest))
	}
	return errs
}

func validateConditions(r *certificatesv1.CertificateSigningRequest) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("status", "conditions")
	seen := sets.New[certificatesv1.RequestConditionType]()
	for i, c := range r.Status.Conditions {
		p := at.Index(i)
		if c.Type == "" {
			errs = append(errs, field.Required(p.Child("type"), ""))
		}
		if seen.Has(c.Type) {
			errs = append(errs, field.Duplicate(p.Child("type"), c.Type))
		}
		seen.Insert(c.Type)
		switch known := isVerdict(c.Type) || c.Type == certificatesv1.CertificateFailed; {
		case c.Status == "":
			errs = append(errs, field.Required(p.Child("status"), ""))
		case known && c.Status != corev1.ConditionTrue:
			errs = append(errs, field.NotSupported(p.Child("status"), c.Status, []corev1.ConditionStatus{corev1.ConditionTrue}))
		case !known && !slices.Contains([]corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}, c.Status):
			errs = append(errs, field.NotSupported(p.Child("status"), c.Status, []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}))
		}
		if isVerdict(c.Type) && slices.ContainsFunc(r.Status.Conditions[:i], func(o certificatesv1.CertificateSigningRequestCondition) bool {
			return isVerdict(o.Type) && o.Type != c.Type
		}) {
			errs = append(errs, field.Invalid(at, c.Type, "Approved and Denied conditions are mutually exclusive"))
		}
	}
	return errs
}

func validateRequestUpdate(r, _ *certificatesv1.CertificateSigningRequest) field.ErrorList {
	return validateRequest(r)
}

// validateApproval: a verdict, once given, stays.
func validateApproval(r, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := validateConditions(r)
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		if has(old, t) && !has(r, t) {
			errs = append(errs, field.Forbidden(field.NewPath("status", "conditions"), fmt.Sprintf("updates may not remove a condition of type %q", t)))
		}
	}
	return errs
}

func has(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(r.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
}

func conditionsOf(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) (out []certificatesv1.CertificateSigningRequestCondition) {
	for _, c := range r.Status.Conditions {
		if c.Type == t {
			out = append(out, c)
		}
	}
	return out
}

func validateStatus(r, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := validateConditions(r)
	if has(old, certificatesv1.CertificateFailed) && !has(r, certificatesv1.CertificateFailed) {
		errs = append(errs, field.Forbidden(field.NewPath("status", "conditions"), fmt.Sprintf("updates may not remove a condition of type %q", certificatesv1.CertificateFailed)))
	}
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		was, now := len(conditionsOf(old, t)), len(conditionsOf(r, t))
		switch {
		case now < was:
			errs = append(errs, field.Forbidden(field.NewPath("status", "conditions"), fmt.Sprintf("updates may not remove a condition of type %q", t)))
		case now > was:
			errs = append(errs, field.Forbidden(field.NewPath("status", "conditions"), fmt.Sprintf("updates may not add a condition of type %q", t)))
		}
	}
	at := field.NewPath("status", "certificate")
	if !slices.Equal(r.Status.Certificate, old.Status.Certificate) {
		if len(old.Status.Certificate) > 0 {
			errs = append(errs, field.Forbidden(at, "updates may not modify existing certificate content"))
		}
		if len(r.Status.Certificate) > 0 {
			errs = append(errs, validateCertificate(at, r.Status.Certificate)...)
		}
	}
	return errs
}

// validateCertificate wants PEM blocks of certificates alone, at least one.
func validateCertificate(at *field.Path, b []byte) field.ErrorList {
	const shown = "<certificate data>"
	blocks := 0
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		blocks++
		switch certs, err := x509.ParseCertificates(block.Bytes); {
		case block.Type != "CERTIFICATE":
			return field.ErrorList{field.Invalid(at, shown, fmt.Sprintf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type))}
		case len(block.Headers) > 0:
			return field.ErrorList{field.Invalid(at, shown, "no PEM block headers are permitted")}
		case err != nil:
			return field.ErrorList{field.Invalid(at, shown, err.Error())}
		case len(certs) == 0:
			return field.ErrorList{field.Invalid(at, shown, "found CERTIFICATE PEM block containing 0 certificates")}
		}
	}
	if blocks == 0 {
		return field.ErrorList{field.Invalid(at, shown, "must contain at least one CERTIFICATE PEM block")}
	}
	return nil
}
