package server

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metricsOf is what the runtime counts.
type metricsOf struct {
	asked int
	err   error
}

func (r fakeRuntime) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest, ...grpc.CallOption) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	r.metrics.asked++
	own := []string{"container", "id", "name"}
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{
		{Name: "container_cpu_usage_seconds_total", Help: "whole seconds", LabelKeys: own},
		{Name: "container_cpu_cfs_periods_total", Help: "periods", LabelKeys: own},
		{Name: "container_network_receive_packets_total", Help: "packets", LabelKeys: append(own, "interface")},
	}}, r.metrics.err
}

func (r fakeRuntime) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	count := func(name string, n uint64, labels ...string) *runtimeapi.Metric {
		return &runtimeapi.Metric{Name: name, Value: &runtimeapi.UInt64Value{Value: n}, LabelValues: append([]string{"x", "y", "z"}, labels...)}
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: []*runtimeapi.PodSandboxMetrics{
		{PodSandboxId: "s1", Metrics: []*runtimeapi.Metric{count("container_network_receive_packets_total", 7, "eth0"), count("undescribed", 1)},
			ContainerMetrics: []*runtimeapi.ContainerMetrics{
				{ContainerId: "c1", Metrics: []*runtimeapi.Metric{count("container_cpu_usage_seconds_total", 9), count("container_cpu_cfs_periods_total", 5)}},
				{ContainerId: "unknown", Metrics: []*runtimeapi.Metric{count("container_cpu_cfs_periods_total", 99)}}}},
		{PodSandboxId: "unknown", Metrics: []*runtimeapi.Metric{count("container_network_receive_packets_total", 99, "eth0")}},
	}}, nil
}

// What the runtime counts is added under the agent's labels; what the agent measures itself
// is more exact.
func TestRuntimeMetrics(t *testing.T) {
	f := serve(t)
	_, text := f.get(t, "/metrics/cadvisor")
	for _, want := range []string{
		"# HELP container_cpu_cfs_periods_total periods\n# TYPE container_cpu_cfs_periods_total counter\n" +
			`container_cpu_cfs_periods_total{container="c",id="/kubepods/besteffort/podu/",image="",name="",namespace="n",pod="p"} 5` + "\n",
		`container_network_receive_packets_total{container="",id="/kubepods/besteffort/podu",image="",name="",namespace="n",pod="p",interface="eth0"} 7` + "\n",
		`container_cpu_usage_seconds_total{cpu="total",container="c",id="/kubepods/besteffort/podu/",image="",name="",namespace="n",pod="p"} 2 1000` + "\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, " 9\n") || strings.Contains(text, " 99\n") || strings.Contains(text, "undescribed") {
		t.Errorf("what is the agent's own, and whose pods nobody knows:\n%s", text)
	}
	// A runtime that fails is asked again, one that does not count is not.
	for _, c := range []struct {
		err   error
		asked int
	}{{errors.New("busy"), 2}, {status.Error(codes.Unimplemented, "no"), 3}, {nil, 3}} {
		f.metrics.err = c.err
		if code, text := f.get(t, "/metrics/cadvisor"); code != 200 || f.metrics.asked != c.asked || !strings.Contains(text, "container_memory_working_set_bytes") || strings.Contains(text, "cfs") {
			t.Errorf("%v: asked %d times, want %d; %d %s", c.err, f.metrics.asked, c.asked, code, text)
		}
	}
}
