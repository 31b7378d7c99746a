// Package pki keeps a cluster's certificate authority and issues certificates
// from it: ECDSA P-256, files readable by their owner only.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Lifetimes of certificates: the authority's, and those that it issues.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	// backdate allows for clocks that differ.
	backdate = time.Hour
	// signedBackdate is that of certificates that others ask for, as in Kubernetes.
	signedBackdate = 5 * time.Minute
)

// Authority is a certificate authority.
type Authority struct {
	Cert *x509.Certificate
	// PEM is the certificate as clients need it.
	PEM []byte
	key *ecdsa.PrivateKey
	now func() time.Time
}

// Open reads ca.crt and ca.key in dir, making them at first use.
func Open(dir string, now func() time.Time) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	certPEM, err := os.ReadFile(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		return create(dir, certFile, keyFile, now)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w: restore both files from a backup", dir, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("certificate authority in %s: want an ECDSA key, have %T", dir, pair.PrivateKey)
	}
	return &Authority{Cert: pair.Leaf, PEM: certPEM, key: key, now: now}, nil
}

func create(dir, certFile, keyFile string, now func() time.Time) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	t := now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "knarr-ca"},
		NotBefore: t.Add(-backdate), NotAfter: t.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a := &Authority{Cert: cert, PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: key, now: now}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	// The key first: a certificate without its key could never be used.
	if err := os.WriteFile(keyFile, keyPEM, 0o600); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if err := os.WriteFile(certFile, a.PEM, 0o644); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return a, nil
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("certificate serial number: %w", err)
	}
	return n, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// Pair is a certificate with its key, in PEM and ready for use.
type Pair struct {
	CertPEM, KeyPEM []byte
	TLS             tls.Certificate
}

// Server issues a certificate for a server that is reached under the given names
// and addresses. It can be used as a client certificate too, under the common
// name, as agents do.
func (a *Authority) Server(commonName string, orgs, names []string, ips []net.IP) (*Pair, error) {
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: commonName, Organization: orgs}, DNSNames: names, IPAddresses: ips,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// Client issues a certificate for a user (common name) of groups (organisations).
func (a *Authority) Client(user string, groups ...string) (*Pair, error) {
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (a *Authority) issue(tmpl *x509.Certificate) (*Pair, error) {
	name := tmpl.Subject.CommonName
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	if tmpl.SerialNumber, err = serialNumber(); err != nil {
		return nil, err
	}
	t := a.now()
	tmpl.NotBefore, tmpl.NotAfter = t.Add(-backdate), t.Add(leafLife)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.Cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	p := &Pair{CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), KeyPEM: keyPEM}
	if p.TLS, err = tls.X509KeyPair(p.CertPEM, p.KeyPEM); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	return p, nil
}

// Pool returns a pool that trusts only this authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

// Sign issues a certificate as in tmpl for somebody's public key, in PEM. It holds
// for life from now on, but not longer than the authority itself.
func (a *Authority) Sign(tmpl *x509.Certificate, key crypto.PublicKey, life time.Duration) ([]byte, error) {
	c := *tmpl
	var err error
	if c.SerialNumber, err = serialNumber(); err != nil {
		return nil, err
	}
	t := a.now()
	c.NotBefore, c.NotAfter = t.Add(-signedBackdate), t.Add(life)
	if c.NotAfter.After(a.Cert.NotAfter) {
		c.NotAfter = a.Cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, a.Cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", c.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
