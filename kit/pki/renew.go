package pki

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// Source hands out a certificate that others renew: a handshake gets the one of
// its moment. It fits tls.Config by GetCertificate and GetClientCertificate.
type Source struct {
	now  func() time.Time
	load func(old *tls.Certificate) (*tls.Certificate, error)
	// fails is told why the certificate could not be renewed; the old one serves on.
	fails func(error)

	mu      sync.Mutex
	current *tls.Certificate
	checked time.Time
}

// checkEvery bounds how often handshakes look for a newer certificate.
const checkEvery = time.Second

// Files serves the certificate in two PEM files, anew when they change. Errors
// after the first reading go to fails.
func Files(certFile, keyFile string, now func() time.Time, fails func(error)) (*Source, error) {
	var seen [2]time.Time
	s := &Source{now: now, fails: fails, load: func(old *tls.Certificate) (*tls.Certificate, error) {
		var at [2]time.Time
		for i, f := range []string{certFile, keyFile} {
			info, err := os.Stat(f)
			if err != nil {
				return nil, fmt.Errorf("certificate: %w", err)
			}
			at[i] = info.ModTime()
		}
		if old != nil && at == seen {
			return old, nil
		}
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
		}
		seen = at
		return &pair, nil
	}}
	return s, s.first()
}

// Issued serves a certificate that issue makes, and makes anew when four fifths of
// its life are over.
func Issued(issue func() (*Pair, error), now func() time.Time, fails func(error)) (*Source, error) {
	s := &Source{now: now, fails: fails, load: func(old *tls.Certificate) (*tls.Certificate, error) {
		if old != nil {
			life := old.Leaf.NotAfter.Sub(old.Leaf.NotBefore)
			if now().Before(old.Leaf.NotAfter.Add(-life / 5)) {
				return old, nil
			}
		}
		p, err := issue()
		if err != nil {
			return nil, err
		}
		return &p.TLS, nil
	}}
	return s, s.first()
}

func (s *Source) first() (err error) {
	s.current, err = s.load(nil)
	s.checked = s.now()
	return err
}

// Certificate returns the certificate of this moment.
func (s *Source) Certificate() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.now(); t.Sub(s.checked) >= checkEvery {
		s.checked = t
		if c, err := s.load(s.current); err != nil {
			s.fails(err)
		} else {
			s.current = c
		}
	}
	return s.current
}

// GetCertificate is for tls.Config of servers.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.Certificate(), nil
}

// GetClientCertificate is for tls.Config of clients.
func (s *Source) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return s.Certificate(), nil
}
