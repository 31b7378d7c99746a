package webhook

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits of what stays open between calls.
const (
	maxTransports = 256 // beyond it all are made anew: configurations have changed that often
	idleConns     = 25  // to one callback
	idleTimeout   = 90 * time.Second
	dialTimeout   = 30 * time.Second
	handshake     = 10 * time.Second
)

// transports keeps one transport for each place and trust.
type transports struct {
	mu    sync.Mutex
	known map[transportKey]*http.Transport
}

type transportKey struct {
	service Service // without path; zero: by URL
	ca      [sha256.Size]byte
}

func (p *transports) of(t Target, resolve Resolver) (*http.Transport, error) {
	key := transportKey{ca: sha256.Sum256(t.CABundle)}
	if s := t.Service; s != nil {
		key.service = Service{Namespace: s.Namespace, Name: s.Name, Port: s.port()}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if tr := p.known[key]; tr != nil {
		return tr, nil
	}
	tr, err := newTransport(t, resolve)
	if err != nil {
		return nil, err
	}
	if len(p.known) >= maxTransports {
		for _, old := range p.known {
			old.CloseIdleConnections()
		}
		p.known = nil
	}
	if p.known == nil {
		p.known = map[transportKey]*http.Transport{}
	}
	p.known[key] = tr
	return tr, nil
}

func newTransport(t Target, resolve Resolver) (*http.Transport, error) {
	// HTTP/1.1 only: one HTTP/2 connection would send all calls to one of the
	// Service's pods.
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if len(t.CABundle) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(t.CABundle) {
			return nil, errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	tr := &http.Transport{
		TLSClientConfig: cfg, TLSHandshakeTimeout: handshake,
		MaxIdleConnsPerHost: idleConns, IdleConnTimeout: idleTimeout, Protocols: new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: dialTimeout}
	s := t.Service
	if s == nil {
		tr.Proxy, tr.DialContext = http.ProxyFromEnvironment, dialer.DialContext
		return tr, nil
	}
	service := *s
	cfg.ServerName = service.host()
	tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		if resolve == nil {
			return nil, fmt.Errorf("service %q in namespace %q cannot be reached from here", service.Name, service.Namespace)
		}
		addr, err := resolve(service.Namespace, service.Name, service.port())
		if err != nil {
			return nil, err
		}
		return dialer.DialContext(ctx, network, addr)
	}
	return tr, nil
}
