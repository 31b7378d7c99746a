package apiserver

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are those of kube-apiserver that dashboards read.
type metrics struct {
	registry *prometheus.Registry
	handler  http.Handler
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_request_total",
			Help: "Counter of apiserver requests broken out for each verb, group, version, resource, subresource and HTTP response code."},
			[]string{"verb", "group", "version", "resource", "subresource", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_request_duration_seconds",
			Help:    "Response latency distribution in seconds for each verb, group, version and resource.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}},
			[]string{"verb", "group", "version", "resource", "subresource"}),
	}
	m.registry.MustRegister(m.requests, m.duration, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	return m
}

var verbNames = map[string]string{"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT",
	"patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETECOLLECTION"}

func (m *metrics) observe(info *requestInfo, code int, took time.Duration) {
	if !info.known {
		return
	}
	if code == 0 {
		code = http.StatusOK
	}
	verb := verbNames[info.Verb]
	if verb == "" {
		verb = "OTHER"
	}
	if code == http.StatusNotFound && info.Subresource != "" {
		return // unknown paths must not make unbounded label values
	}
	m.requests.WithLabelValues(verb, info.Group, info.Version, info.Resource, info.Subresource, strconv.Itoa(code)).Inc()
	if verb != "WATCH" {
		m.duration.WithLabelValues(verb, info.Group, info.Version, info.Resource, info.Subresource).Observe(took.Seconds())
	}
}
