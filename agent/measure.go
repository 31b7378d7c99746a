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
		list = append(list, metrics.TTL("client", cfg.ClientCert.NotAfter, cfg.Clock))
	}
	if c := leaf(cfg.TLS); c != nil {
		list = append(list, metrics.TTL("server", c.NotAfter, cfg.Clock))
	}
	return list
}

// leaf is the server's certificate; nil if there is none.
func leaf(t *tls.Config) *x509.Certificate {
	if t == nil || len(t.Certificates) == 0 || len(t.Certificates[0].Certificate) == 0 {
		return nil
	}
	if c := t.Certificates[0].Leaf; c != nil {
		return c
	}
	c, err := x509.ParseCertificate(t.Certificates[0].Certificate[0])
	if err != nil {
		return nil
	}
	return c
}
