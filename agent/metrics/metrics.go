// Package metrics counts what the agent does, under the names that kubelets use:
// https://kubernetes.io/docs/reference/instrumentation/metrics.
package metrics

import (
	"net/http"
	"runtime"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
)

// Metrics are the agent's own. The zero value is of no use: see New. A nil *Metrics
// counts nothing.
type Metrics struct {
	registry, probes *prometheus.Registry
	work             *work

	operations      *prometheus.CounterVec
	operationErrors *prometheus.CounterVec
	operationTime   *prometheus.HistogramVec
	started         *prometheus.CounterVec
	startErrors     *prometheus.CounterVec
	pods            prometheus.Counter
	podErrors       prometheus.Counter
	userPods        prometheus.Counter
	userPodErrors   prometheus.Counter
	aligned         prometheus.Counter
	alignErrors     prometheus.Counter
	plugins         *prometheus.CounterVec
	podStart        prometheus.Histogram
	podStartTotal   prometheus.Histogram
	evictions       *prometheus.CounterVec
	preemptions     *prometheus.CounterVec
	requests        *prometheus.CounterVec
	requestTime     *prometheus.HistogramVec
	inflight        *prometheus.GaugeVec
	probed          *prometheus.CounterVec
	probeTime       *prometheus.HistogramVec
}

var startBuckets = []float64{.05, .1, .25, .5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}

// New returns metrics that are all zero. version is knarr's, as the build info.
func New(version, commit string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(), probes: prometheus.NewRegistry(), work: newWork(),
		operations:      counter("kubelet_runtime_operations_total", "Cumulative number of runtime operations by operation type.", "operation_type"),
		operationErrors: counter("kubelet_runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type.", "operation_type"),
		operationTime:   histogram("kubelet_runtime_operations_duration_seconds", "Duration in seconds of runtime operations. Broken down by operation type.", prometheus.ExponentialBuckets(.005, 2.5, 14), "operation_type"),
		started:         counter("kubelet_started_containers_total", "Cumulative number of containers started", "container_type"),
		startErrors:     counter("kubelet_started_containers_errors_total", "Cumulative number of errors when starting containers", "code", "container_type"),
		pods:            prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelet_started_pods_total", Help: "Cumulative number of pods started"}),
		podErrors:       prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelet_started_pods_errors_total", Help: "Cumulative number of errors when starting pods"}),
		userPods:        prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelet_started_user_namespaced_pods_total", Help: "Cumulative number of pods with user namespaces started"}),
		userPodErrors:   prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelet_started_user_namespaced_pods_errors_total", Help: "Cumulative number of errors when starting pods with user namespaces"}),
		aligned:         prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelet_topology_manager_admission_requests_total", Help: "The number of admission requests where resources have to be aligned"}),
		alignErrors:     prometheus.NewCounter(prometheus.CounterOpts{Name: "kubelet_topology_manager_admission_errors_total", Help: "The number of admission request failures where resources could not be aligned"}),
		plugins:         counter("kubelet_device_plugin_registration_total", "Cumulative number of device plugin registrations. Broken down by resource name.", "resource_name"),
		podStart: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubelet_pod_start_duration_seconds",
			Help: "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run", Buckets: startBuckets}),
		podStartTotal: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubelet_pod_start_total_duration_seconds",
			Help: "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", Buckets: startBuckets}),
		evictions:   counter("kubelet_evictions", "Cumulative number of pod evictions by eviction signal", "eviction_signal"),
		preemptions: counter("kubelet_preemptions", "Cumulative number of pod preemptions by preemption resource", "preemption_signal"),
		requests:    counter("kubelet_http_requests_total", "Number of the http requests received since the server started", "long_running", "method", "path", "server_type"),
		requestTime: histogram("kubelet_http_requests_duration_seconds", "Duration in seconds to serve http requests", prometheus.DefBuckets, "long_running", "method", "path", "server_type"),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelet_http_inflight_requests", Help: "Number of the inflight http requests"},
			[]string{"long_running", "method", "path", "server_type"}),
		probed: counter("prober_probe_total", "Cumulative number of a liveness, readiness or startup probe for a container by result.",
			"container", "namespace", "pod", "pod_uid", "probe_type", "result"),
		probeTime: histogram("prober_probe_duration_seconds", "Duration in seconds for a probe response.", nil, "container", "namespace", "pod", "probe_type"),
	}
	major, minor := release(version)
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubernetes_build_info", Help: "A metric with a constant '1' value labeled by version.",
		ConstLabels: prometheus.Labels{"major": major, "minor": minor, "git_version": version, "git_commit": commit,
			"go_version": runtime.Version(), "compiler": runtime.Compiler, "platform": runtime.GOOS + "/" + runtime.GOARCH}})
	build.Set(1)
	m.registry.MustRegister(m.operations, m.operationErrors, m.operationTime, m.started, m.startErrors, m.pods, m.podErrors, m.userPods, m.userPodErrors, m.aligned, m.alignErrors, m.plugins, m.podStart, m.podStartTotal,
		m.evictions, m.preemptions, m.requests, m.requestTime, m.inflight, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(m.work.all()...)
	m.probes.MustRegister(m.probed, m.probeTime)
	return m
}

// Handler serves all but the probes' counts; further metrics are collected at each
// request.
func (m *Metrics) Handler(further ...prometheus.Collector) http.Handler {
	all := prometheus.Gatherers{m.registry}
	if len(further) > 0 {
		r := prometheus.NewRegistry()
		r.MustRegister(further...)
		all = append(all, r)
	}
	return promhttp.HandlerFor(all, promhttp.HandlerOpts{})
}

// Probes serves the probes' counts.
func (m *Metrics) Probes() http.Handler {
	return promhttp.HandlerFor(m.probes, promhttp.HandlerOpts{})
}

// Operation counts a call of the runtime, by the name of its RPC.
func (m *Metrics) Operation(method string, took time.Duration, err error) {
	if m == nil {
		return
	}
	name := operation(method)
	m.operations.WithLabelValues(name).Inc()
	m.operationTime.WithLabelValues(name).Observe(took.Seconds())
	if err != nil {
		m.operationErrors.WithLabelValues(name).Inc()
	}
}

// operation writes ListPodSandbox as kubelets do: list_podsandbox.
func operation(method string) string {
	method = strings.Replace(method, "PodSandbox", "Podsandbox", 1)
	if method == "UpdateContainerResources" {
		method = "UpdateContainer"
	}
	var b strings.Builder
	for i, r := range method {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// ContainerStarted counts a start of a container: "container", "init_container" or
// "ephemeral_container". reason is why it failed, empty if it did not.
func (m *Metrics) ContainerStarted(kind, reason string) {
	if m == nil {
		return
	}
	m.started.WithLabelValues(kind).Inc()
	if reason != "" {
		m.startErrors.WithLabelValues(reason, kind).Inc()
	}
}

// PodStarting counts a pod's sandbox; users says that it has a user namespace, err that it
// was not made.
func (m *Metrics) PodStarting(users bool, err error) {
	if m == nil {
		return
	}
	m.pods.Inc()
	if err != nil {
		m.podErrors.Inc()
	}
	if !users {
		return
	}
	m.userPods.Inc()
	if err != nil {
		m.userPodErrors.Inc()
	}
}

// UsersFailed counts that a container of a pod with a user namespace did not start.
func (m *Metrics) UsersFailed() {
	if m != nil {
		m.userPodErrors.Inc()
	}
}

// Aligned counts a pod whose resources were to be set aside; reason is why they were
// not, empty if they were.
func (m *Metrics) Aligned(reason string) {
	if m == nil {
		return
	}
	m.aligned.Inc()
	if reason == "TopologyAffinityError" {
		m.alignErrors.Inc()
	}
}

// PluginRegistered counts a device plugin's registration.
func (m *Metrics) PluginRegistered(resource string) {
	if m != nil {
		m.plugins.WithLabelValues(resource).Inc()
	}
}

// PodRuns notes how long a pod took: since the agent saw it, and since its creation, of which
// its images and init containers took apart.
func (m *Metrics) PodRuns(seen, created, apart time.Duration) {
	if m == nil {
		return
	}
	m.podStart.Observe(seen.Seconds())
	m.podStartTotal.Observe(created.Seconds())
	m.work.podStartSLI.Observe((created - apart).Seconds())
}

// Evicted counts a pod evicted because of a signal.
func (m *Metrics) Evicted(signal string) {
	if m != nil {
		m.evictions.WithLabelValues(signal).Inc()
	}
}

// Preempted counts a pod that gave way for a resource.
func (m *Metrics) Preempted(resource string) {
	if m != nil {
		m.preemptions.WithLabelValues(resource).Inc()
	}
}

// Probed counts a probe: its type is Liveness, Readiness or Startup, its result
// successful, failed or unknown.
func (m *Metrics) Probed(pod *corev1.Pod, container, kind, result string, took time.Duration) {
	if m == nil {
		return
	}
	m.probed.WithLabelValues(container, pod.Namespace, pod.Name, string(pod.UID), kind, result).Inc()
	m.probeTime.WithLabelValues(container, pod.Namespace, pod.Name, kind).Observe(took.Seconds())
}

// Forget drops what is known of a pod that is gone.
func (m *Metrics) Forget(pod *corev1.Pod) {
	if m == nil {
		return
	}
	m.probed.DeletePartialMatch(prometheus.Labels{"pod_uid": string(pod.UID)})
	m.probeTime.DeletePartialMatch(prometheus.Labels{"namespace": pod.Namespace, "pod": pod.Name})
}

// Request notes a request to the agent's server; what it returns is called at its
// end.
func (m *Metrics) Request(method, path string, long bool) (done func()) {
	if m == nil {
		return func() {}
	}
	l := []string{"false", method, path, "readwrite"}
	if long {
		l[0] = "true"
	}
	start := time.Now()
	m.requests.WithLabelValues(l...).Inc()
	m.inflight.WithLabelValues(l...).Inc()
	return func() {
		m.inflight.WithLabelValues(l...).Dec()
		m.requestTime.WithLabelValues(l...).Observe(time.Since(start).Seconds())
	}
}
