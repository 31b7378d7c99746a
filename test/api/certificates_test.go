package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/cmd/local"
	"knarr.dev/knarr/controller/bootstraptokens"
	"knarr.dev/knarr/controller/certificates"
	"knarr.dev/knarr/controller/engine"
)

type noEvents struct{}

func (noEvents) Event(client.Object, string, string, string) {}

// runControllers runs controllers in the server until the test ends.
func runControllers(t *testing.T, s *apitest.Server, list ...engine.Controller) {
	ls := &local.Server{Registry: s.Registry, Authz: s.Authz, Tokens: s.Tokens, Now: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- engine.Run(ctx, ls.As(auth.Component("system:apitest", auth.GroupMasters)), noEvents{}, clock.RealClock{}, slog.New(slog.DiscardHandler), list)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controllers: %v", err)
		}
	})
}

// request asks for a certificate and returns the request when done says so.
func request(t *testing.T, c *kubernetes.Clientset, name, signer string, subject pkix.Name, usages []certificatesv1.KeyUsage, approve *kubernetes.Clientset) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	seconds := int32(3600)
	r, err := c.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Usages: usages, ExpirationSeconds: &seconds,
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if approve != nil {
		r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"})
		if _, err := approve.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(), name, r, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w, err := c.CertificatesV1().CertificateSigningRequests().Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		r, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok {
			continue
		}
		failed := false
		for _, x := range r.Status.Conditions {
			failed = failed || x.Type == certificatesv1.CertificateFailed
		}
		if failed || len(r.Status.Certificate) > 0 {
			return r
		}
	}
	t.Fatal("the watch ended")
	return nil
}

var clientUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}

// TestJoinByToken: with a bootstrap token an agent gets its certificate, as
// kubelets do; the token's secret goes when it expires.
func TestJoinByToken(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	runControllers(t, s, certificates.NewApproving(), certificates.NewSigning(s.CA), certificates.NewCleaner(), bootstraptokens.New())
	admin, ctx, create := s.Client(t), t.Context(), metav1.CreateOptions{}
	for role, binding := range map[string]string{"system:node-bootstrapper": "join", "system:certificates.k8s.io:certificatesigningrequests:nodeclient": "approve"} {
		if _, err := admin.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: binding},
			Subjects: []rbacv1.Subject{{Kind: "Group", APIGroup: rbacv1.GroupName, Name: "system:bootstrappers:x"}},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}}, create); err != nil {
			t.Fatal(err)
		}
	}
	token := func(id string, expires time.Time) {
		t.Helper()
		if _, err := admin.CoreV1().Secrets("kube-system").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id}, Type: "bootstrap.kubernetes.io/token",
			StringData: map[string]string{"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:x",
				"expiration": expires.UTC().Format(time.RFC3339)}}, create); err != nil {
			t.Fatal(err)
		}
	}
	token("abcdef", time.Now().Add(time.Hour))
	with := func(token string) *kubernetes.Clientset {
		return apitest.ClientOf(t, &rest.Config{Host: s.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: s.CA.PEM}})
	}
	node := pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}}
	r := request(t, with("abcdef.0123456789abcdef"), "join", certificatesv1.KubeAPIServerClientKubeletSignerName, node, clientUsages, nil)
	if r.Spec.Username != "system:bootstrap:abcdef" || r.Status.Conditions[0].Reason != "AutoApproved" {
		t.Errorf("request of %s: %+v", r.Spec.Username, r.Status.Conditions)
	}
	block, _ := pem.Decode(r.Status.Certificate)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.Subject.CommonName != "system:node:n1" || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth ||
		cert.NotAfter.Sub(cert.NotBefore) != time.Hour+5*time.Minute {
		t.Errorf("certificate %+v, %v", cert, err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: s.CA.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := with("abcdef.0000000000000000").CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{}); err == nil || !strings.Contains(err.Error(), "Unauthorized") {
		t.Errorf("a wrong token: %v", err)
	}
	w, err := admin.CoreV1().Secrets("kube-system").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=bootstrap-token-expire"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	token("expire", time.Now().Add(-time.Minute))
	for e := range w.ResultChan() {
		if e.Type == "DELETED" {
			return
		}
	}
	t.Error("an expired token's secret stays")
}

// TestSigners: each signer keeps its rules.
func TestSigners(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	runControllers(t, s, certificates.NewApproving(), certificates.NewSigning(s.CA))
	admin := s.Client(t)
	server := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	node := pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}}
	for _, c := range []struct {
		name, signer string
		subject      pkix.Name
		usages       []certificatesv1.KeyUsage
		want         string // of the condition Failed; "": it is signed
	}{
		{"user", certificatesv1.KubeAPIServerClientSignerName, pkix.Name{CommonName: "u"}, clientUsages, ""},
		{"user-server", certificatesv1.KubeAPIServerClientSignerName, pkix.Name{CommonName: "u"}, server, `usages did not include "client auth"`},
		{"node-org", certificatesv1.KubeAPIServerClientKubeletSignerName, pkix.Name{CommonName: "system:node:n1"}, clientUsages, "subject organization is not system:nodes"},
		{"serving-names", certificatesv1.KubeletServingSignerName, node, server, "DNS or IP subjectAltName is required"},
		{"legacy", "kubernetes.io/legacy-unknown", pkix.Name{CommonName: "x"}, server, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(t, admin, c.name, c.signer, c.subject, c.usages, admin)
			have := ""
			for _, x := range r.Status.Conditions {
				if x.Type == certificatesv1.CertificateFailed {
					have = x.Message
				}
			}
			if have != c.want {
				t.Errorf("failed with %q, want %q", have, c.want)
			}
		})
	}
}
