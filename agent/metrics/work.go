package metrics

import (
	"crypto/x509"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
)

// work counts what the agent's parts do for pods.
type work struct {
	actors       *prometheus.HistogramVec
	listing      prometheus.Histogram
	listed       prometheus.Histogram
	groups       *prometheus.HistogramVec
	volumes      *prometheus.HistogramVec
	podStartSLI  prometheus.Histogram
	configFailed prometheus.Gauge

	mu   sync.Mutex
	last time.Time // when all pods of the runtime were last listed
}

func newWork() *work {
	one := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	vec := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	return &work{
		actors:  vec("kubelet_pod_worker_duration_seconds", "Duration in seconds to sync a single pod. Broken down by operation type: create, sync or kill", prometheus.DefBuckets, "operation_type"),
		listing: one("kubelet_pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG.", prometheus.DefBuckets),
		listed:  one("kubelet_pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG.", prometheus.DefBuckets),
		groups:  vec("kubelet_cgroup_manager_duration_seconds", "Duration in seconds for cgroup manager operations. Broken down by method.", prometheus.DefBuckets, "operation_type"),
		volumes: vec("storage_operation_duration_seconds", "Storage operation duration", []float64{.1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600},
			"migrated", "operation_name", "status", "volume_plugin"),
		podStartSLI: one("kubelet_pod_start_sli_duration_seconds", "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", startBuckets),
		// What is wrong in a configuration keeps the agent from starting.
		configFailed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubelet_node_config_error", Help: "This metric is true (1) if the node is experiencing a configuration-related error, false (0) otherwise."}),
	}
}

func (w *work) all() []prometheus.Collector {
	return []prometheus.Collector{w.actors, w.listing, w.listed, w.groups, w.volumes, w.podStartSLI, w.configFailed}
}

// Worked notes a piece of work for a pod: to create it, sync it or kill it.
func (m *Metrics) Worked(operation string, took time.Duration) {
	if m != nil {
		m.work.actors.WithLabelValues(operation).Observe(took.Seconds())
	}
}

// Listed notes that all the runtime's pods were listed, from began to now.
func (m *Metrics) Listed(began, now time.Time) {
	if m == nil {
		return
	}
	m.work.listing.Observe(now.Sub(began).Seconds())
	m.work.mu.Lock()
	defer m.work.mu.Unlock()
	if !m.work.last.IsZero() {
		m.work.listed.Observe(began.Sub(m.work.last).Seconds())
	}
	m.work.last = began
}

// Grouped notes a change of a pod's control group: update or destroy.
func (m *Metrics) Grouped(operation string, took time.Duration) {
	if m != nil {
		m.work.groups.WithLabelValues(operation).Observe(took.Seconds())
	}
}

// Mounted notes that a volume of a plugin was prepared, or not.
func (m *Metrics) Mounted(plugin string, took time.Duration, err error) {
	if m == nil {
		return
	}
	status := "success"
	if err != nil {
		status = "fail-unknown"
	}
	m.work.volumes.WithLabelValues("false", "volume_mount", status, plugin).Observe(took.Seconds())
}

// Add has further metrics served by Handler.
func (m *Metrics) Add(more ...prometheus.Collector) { m.registry.MustRegister(more...) }

// TTL is how long a certificate of the agent is good for: the client's, with which it goes to
// the API, or the server's. It is asked for each time, as certificates are renewed; nil: there
// is none at the moment.
func TTL(of string, current func() *x509.Certificate, clk clock.PassiveClock) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubelet_certificate_manager_" + of + "_ttl_seconds",
		Help: "Gauge of the TTL (time-to-live) of the Kubelet's " + of + " certificate. The value is in seconds until certificate expiry (negative if already expired). If the certificate is invalid or unused, the value will be +INF."},
		func() float64 {
			if c := current(); c != nil {
				return c.NotAfter.Sub(clk.Now()).Seconds()
			}
			return math.Inf(1)
		})
}

// Requests counts requests to the API. Make them with NewRequests.
type Requests struct {
	total *prometheus.CounterVec
	took  *prometheus.HistogramVec
}

// NewRequests returns counts that are all zero.
func NewRequests() *Requests {
	return &Requests{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rest_client_requests_total", Help: "Number of HTTP requests, partitioned by status code, method, and host."}, []string{"code", "host", "method"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rest_client_request_duration_seconds", Help: "Request latency in seconds. Broken down by verb, and host.",
			Buckets: []float64{.005, .025, .1, .25, .5, 1, 2, 4, 8, 15, 30, 60}}, []string{"host", "verb"}),
	}
}

// Collectors are the metrics, for Metrics.Add.
func (r *Requests) Collectors() []prometheus.Collector {
	return []prometheus.Collector{r.total, r.took}
}

// Wrap has the requests through next counted, up to the answer's headers.
func (r *Requests) Wrap(next http.RoundTripper) http.RoundTripper {
	return tripper(func(q *http.Request) (*http.Response, error) {
		began, code := time.Now(), "<error>"
		resp, err := next.RoundTrip(q)
		if err == nil {
			code = strconv.Itoa(resp.StatusCode)
		}
		r.total.WithLabelValues(code, q.URL.Host, q.Method).Inc()
		r.took.WithLabelValues(q.URL.Host, q.Method).Observe(time.Since(began).Seconds())
		return resp, err
	})
}

type tripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (t tripper) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// release splits v1.36.3+knarr into 1 and 36.
func release(version string) (major, minor string) {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ = strings.Cut(rest, ".")
	return major, minor
}
