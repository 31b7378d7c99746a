package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"

	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/metrics"
)

// measuredGroups notes how long changes of control groups take.
type measuredGroups struct {
	Groups
	count *metrics.Metrics
	clock clock.PassiveClock
}

// Apply implements Groups.
func (g measuredGroups) Apply(path string, r *runtimeapi.LinuxContainerResources) error {
	began := g.clock.Now()
	err := g.Groups.Apply(path, r)
	g.count.Grouped("update", g.clock.Since(began))
	return err
}

// Remove implements Groups.
func (g measuredGroups) Remove(ctx context.Context, path string) error {
	began := g.clock.Now()
	err := g.Groups.Remove(ctx, path)
	g.count.Grouped("destroy", g.clock.Since(began))
	return err
}

// collectors are the metrics of the agent's way to the API and of its certificates.
func (cfg *Config) collectors() []prometheus.Collector {
	var list []prometheus.Collector
	if cfg.Requests != nil {
		list = cfg.Requests.Collectors()
	}
	if cfg.ClientCert != nil {
		list = append(list, metrics.TTL("client", cfg.ClientCert, cfg.Clock))
	}
	if cfg.TLS != nil {
		list = append(list, metrics.TTL("server", func() *x509.Certificate { return leaf(cfg.TLS) }, cfg.Clock))
	}
	return list
}

// leaf is the server's certificate at the moment; nil if there is none.
func leaf(t *tls.Config) *x509.Certificate {
	var c *tls.Certificate
	switch {
	case t.GetCertificate != nil:
		c, _ = t.GetCertificate(&tls.ClientHelloInfo{}) // an error says that there is none yet
	case len(t.Certificates) > 0:
		c = &t.Certificates[0]
	}
	switch {
	case c == nil || c.Leaf == nil && len(c.Certificate) == 0:
		return nil
	case c.Leaf != nil:
		return c.Leaf
	}
	parsed, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil
	}
	return parsed
}
