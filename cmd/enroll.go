package cmd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/certificate"

	"knarr.dev/knarr/apiserver/auth"
)

// A node may join with a token that is good for that alone. It asks for the certificate
// by which the API knows it, and with that for the one which its own server shows; both
// are renewed in the same way when a fifth of their lives, about, is left:
//
//	token ──CSR──> client certificate ──CSR, approved by a person──> serving certificate
//
// https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/

// lookEvery is how often a node looks whether its first certificate has come.
const lookEvery = 50 * time.Millisecond

// enroll returns the node's access to the API; it waits until there is one. The
// certificates are kept in dir, and need no token any more when they are there.
func (c *Config) enroll(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), log *slog.Logger) (*rest.Config, access, error) {
	dir := filepath.Join(c.DataDir, "identity")
	var acc access
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, acc, err
	}
	boot, err := clientcmd.BuildConfigFromFlags(c.Join.Server, c.Join.BootstrapKubeconfig)
	if err != nil {
		return nil, acc, fmt.Errorf("join.bootstrapKubeconfig %s: %w", c.Join.BootstrapKubeconfig, err)
	}
	boot.Dial = dial
	if err := rest.LoadTLSFiles(boot); err != nil {
		return nil, acc, fmt.Errorf("join.bootstrapKubeconfig %s: %w", c.Join.BootstrapKubeconfig, err)
	}
	acc.clients = x509.NewCertPool()
	if !acc.clients.AppendCertsFromPEM(boot.CAData) {
		return nil, acc, errors.New("join.bootstrapKubeconfig: the cluster's certificate authority is missing in it")
	}
	keep := func(name string) (certificate.FileStore, error) {
		s, err := certificate.NewFileStore(name, dir, dir, "", "")
		if err != nil {
			return nil, fmt.Errorf("the node's certificates in %s: %w", dir, err)
		}
		return s, nil
	}
	store, err := keep("client")
	if err != nil {
		return nil, acc, err
	}
	// The file is read again when it changes.
	known := rest.AnonymousClientConfig(boot)
	known.Dial = dial
	known.CertFile, known.KeyFile = store.CurrentPath(), store.CurrentPath()
	subject := pkix.Name{CommonName: auth.UserNode + c.Node.Name, Organization: []string{auth.GroupNodes}}
	client, err := certificate.NewManager(&certificate.Config{
		Name: "client", SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, GetUsages: certificate.DefaultKubeletClientGetUsages,
		Template: &x509.CertificateRequest{Subject: subject}, CertificateStore: store, Ctx: &ctx,
		ClientsetFn: func(current *tls.Certificate) (kubernetes.Interface, error) {
			if current == nil {
				return kubernetes.NewForConfig(boot)
			}
			return kubernetes.NewForConfig(known)
		},
	})
	if err != nil {
		return nil, acc, fmt.Errorf("the node's client certificate: %w", err)
	}
	client.Start()
	if client.Current() == nil {
		log.Info("the node asks for its certificate; if it is not approved by itself: kubectl get csr, kubectl certificate approve", "node", c.Node.Name)
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for client.Current() == nil {
		select {
		case <-ctx.Done():
			return nil, acc, ctx.Err()
		case <-look.C:
		}
	}
	acc.cert = func() *x509.Certificate {
		if c := client.Current(); c != nil {
			return c.Leaf
		}
		return nil
	}
	if store, err = keep("server"); err != nil {
		return nil, acc, err
	}
	names := &x509.CertificateRequest{Subject: subject, DNSNames: []string{c.Node.Name}, IPAddresses: []net.IP{net.ParseIP(c.Node.IP)}}
	server, err := certificate.NewManager(&certificate.Config{
		Name: "server", SignerName: certificatesv1.KubeletServingSignerName, GetUsages: certificate.DefaultKubeletServingGetUsages,
		Template: names, CertificateStore: store, Ctx: &ctx,
		ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) { return kubernetes.NewForConfig(known) },
	})
	if err != nil {
		return nil, acc, fmt.Errorf("the certificate of the node's server: %w", err)
	}
	server.Start()
	if server.Current() == nil {
		log.Info("logs of and commands in the node's pods wait for a person who approves its serving certificate: kubectl get csr, kubectl certificate approve", "node", c.Node.Name)
	}
	acc.serving = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if s := server.Current(); s != nil {
			return s, nil
		}
		return nil, errors.New("the node's serving certificate is not approved yet: kubectl get csr, kubectl certificate approve")
	}
	return known, acc, nil
}
