// Package certificates approves, signs and clears away requests for certificates
// of Kubernetes' own signers:
//
//	kubernetes.io/kube-apiserver-client          users of the API
//	kubernetes.io/kube-apiserver-client-kubelet  agents, as users of the API
//	kubernetes.io/kubelet-serving                agents' own servers
//	kubernetes.io/legacy-unknown                 anything; nobody relies on it
//
// Only requests of agents for their own user are approved here, if a
// SubjectAccessReview says that they may; the others wait for a person.
package certificates

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/api/certificates"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

var (
	requests = certificatesv1.SchemeGroupVersion.WithResource("certificatesigningrequests")
	signers  = certificatesv1.SchemeGroupVersion.WithResource("signers")
)

// Authority issues certificates.
type Authority interface {
	// Sign issues a certificate as in tmpl for a public key, valid for life from now
	// on or as long as the authority itself, and returns it in PEM.
	Sign(tmpl *x509.Certificate, key crypto.PublicKey, life time.Duration) ([]byte, error)
}

// maxLife is how long certificates hold at most, in the absence of a shorter wish.
const maxLife = 365 * 24 * time.Hour

// NewSigning declares the controller that signs approved requests. Keys are
// requests.
func NewSigning(ca Authority) engine.Controller {
	return engine.Controller{
		Name:    "certificatesigningrequest-signing-controller",
		Watches: []engine.Watch{{Resource: requests, Keys: engine.Self}},
		Writes: []engine.Write{
			{Resource: requests, Subresource: "status", Verbs: []string{"update"}},
			{Resource: signers, Verbs: []string{"sign"}},
		},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				return 0, sign(ctx, env, ca, key.Name)
			}
		},
	}
}

func sign(ctx context.Context, env *engine.Env, ca Authority, name string) error {
	r, ok := client.Cached[*certificatesv1.CertificateSigningRequest](env.Cache(requests), "", name)
	if !ok || len(r.Status.Certificate) > 0 || !certificates.Has(r, certificatesv1.CertificateApproved) ||
		certificates.Has(r, certificatesv1.CertificateDenied) || certificates.Has(r, certificatesv1.CertificateFailed) {
		return nil
	}
	check, ours := rules[r.Spec.SignerName]
	if !ours {
		return nil
	}
	next := r.DeepCopy()
	req, err := certificates.ParseRequest(r.Spec.Request)
	if err == nil {
		err = check(req, r.Spec.Usages)
	}
	if err != nil {
		next.Status.Conditions = append(next.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure", Message: err.Error()})
	} else if next.Status.Certificate, err = issue(ca, r, req); err != nil {
		return fmt.Errorf("certificate for request %s: %w", name, err)
	}
	_, err = env.Client.Update(ctx, client.Key{Resource: requests, Name: name}.Sub("status"), next)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func issue(ca Authority, r *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest) ([]byte, error) {
	tmpl := &x509.Certificate{Subject: req.Subject, DNSNames: req.DNSNames, IPAddresses: req.IPAddresses, EmailAddresses: req.EmailAddresses, URIs: req.URIs, BasicConstraintsValid: true}
	for _, u := range r.Spec.Usages {
		if k, ok := keyUsages[u]; ok {
			tmpl.KeyUsage |= k
		} else if e, ok := extUsages[u]; ok {
			tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, e)
		} else {
			return nil, fmt.Errorf("unrecognized usage %q", u)
		}
	}
	life := maxLife
	if s := r.Spec.ExpirationSeconds; s != nil {
		life = min(life, max(10*time.Minute, time.Duration(*s)*time.Second))
	}
	return ca.Sign(tmpl, req.PublicKey, life)
}

// rules are what each signer demands.
var rules = map[string]func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error{
	certificatesv1.KubeAPIServerClientSignerName: func(_ *x509.CertificateRequest, u []certificatesv1.KeyUsage) error {
		return usages(u, []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}, clientUsages)
	},
	certificatesv1.KubeAPIServerClientKubeletSignerName: func(r *x509.CertificateRequest, u []certificatesv1.KeyUsage) error {
		return kubeletClient(r, u)
	},
	certificatesv1.KubeletServingSignerName: kubeletServing,
	"kubernetes.io/legacy-unknown":          func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error { return nil },
}

var (
	clientUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageClientAuth}
	serverUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageServerAuth}
)

func usages(have, must, may []certificatesv1.KeyUsage) error {
	for _, u := range must {
		if !slices.Contains(have, u) {
			return fmt.Errorf("usages did not include %q", u)
		}
	}
	for _, u := range have {
		if !slices.Contains(may, u) {
			return fmt.Errorf("invalid usage %q: this signer permits %q", u, may)
		}
	}
	return nil
}

const (
	nodesGroup = "system:nodes"
	nodePrefix = "system:node:"
)

func kubeletClient(r *x509.CertificateRequest, u []certificatesv1.KeyUsage) error {
	switch {
	case !slices.Equal(r.Subject.Organization, []string{nodesGroup}):
		return errors.New("subject organization is not system:nodes")
	case len(r.DNSNames) > 0:
		return errors.New("DNS subjectAltNames are not allowed")
	case len(r.EmailAddresses) > 0:
		return errors.New("Email subjectAltNames are not allowed")
	case len(r.IPAddresses) > 0:
		return errors.New("IP subjectAltNames are not allowed")
	case len(r.URIs) > 0:
		return errors.New("URI subjectAltNames are not allowed")
	case !strings.HasPrefix(r.Subject.CommonName, nodePrefix):
		return errors.New("subject common name does not begin with system:node: ")
	}
	return usages(u, []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}, clientUsages)
}

func kubeletServing(r *x509.CertificateRequest, u []certificatesv1.KeyUsage) error {
	switch {
	case !slices.Equal(r.Subject.Organization, []string{nodesGroup}):
		return errors.New("subject organization is not system:nodes")
	case len(r.DNSNames) == 0 && len(r.IPAddresses) == 0:
		return errors.New("DNS or IP subjectAltName is required")
	case len(r.EmailAddresses) > 0:
		return errors.New("Email subjectAltNames are not allowed")
	case len(r.URIs) > 0:
		return errors.New("URI subjectAltNames are not allowed")
	case !strings.HasPrefix(r.Subject.CommonName, nodePrefix):
		return errors.New("subject common name does not begin with system:node: ")
	}
	return usages(u, []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}, serverUsages)
}

var keyUsages = map[certificatesv1.KeyUsage]x509.KeyUsage{
	certificatesv1.UsageSigning: x509.KeyUsageDigitalSignature, certificatesv1.UsageDigitalSignature: x509.KeyUsageDigitalSignature,
	certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment, certificatesv1.UsageKeyEncipherment: x509.KeyUsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement: x509.KeyUsageKeyAgreement, certificatesv1.UsageDataEncipherment: x509.KeyUsageDataEncipherment,
	certificatesv1.UsageCertSign: x509.KeyUsageCertSign, certificatesv1.UsageCRLSign: x509.KeyUsageCRLSign,
	certificatesv1.UsageEncipherOnly: x509.KeyUsageEncipherOnly, certificatesv1.UsageDecipherOnly: x509.KeyUsageDecipherOnly,
}

var extUsages = map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
	certificatesv1.UsageAny: x509.ExtKeyUsageAny, certificatesv1.UsageServerAuth: x509.ExtKeyUsageServerAuth, certificatesv1.UsageClientAuth: x509.ExtKeyUsageClientAuth,
	certificatesv1.UsageCodeSigning: x509.ExtKeyUsageCodeSigning, certificatesv1.UsageEmailProtection: x509.ExtKeyUsageEmailProtection,
	certificatesv1.UsageSMIME: x509.ExtKeyUsageEmailProtection, certificatesv1.UsageIPsecEndSystem: x509.ExtKeyUsageIPSECEndSystem,
	certificatesv1.UsageIPsecTunnel: x509.ExtKeyUsageIPSECTunnel, certificatesv1.UsageIPsecUser: x509.ExtKeyUsageIPSECUser,
	certificatesv1.UsageTimestamping: x509.ExtKeyUsageTimeStamping, certificatesv1.UsageOCSPSigning: x509.ExtKeyUsageOCSPSigning,
	certificatesv1.UsageMicrosoftSGC: x509.ExtKeyUsageMicrosoftServerGatedCrypto, certificatesv1.UsageNetscapeSGC: x509.ExtKeyUsageNetscapeServerGatedCrypto,
}
