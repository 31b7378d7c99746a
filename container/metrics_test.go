package container

import (
	"context"
	"net/netip"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMetrics(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	})
	d, err := f.ListMetricDescriptors(f.ctx(), nil)
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, m := range d.Descriptors {
		if labels[m.Name] != 0 || m.Help == "" {
			t.Errorf("descriptor %v", m)
		}
		labels[m.Name] = len(m.LabelKeys)
	}
	resp, err := f.ListPodSandboxMetrics(f.ctx(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.PodMetrics) != 1 || resp.PodMetrics[0].PodSandboxId != pod || len(resp.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("measured %v", resp)
	}
	of := resp.PodMetrics[0].ContainerMetrics[0]
	values := map[string]uint64{}
	for _, m := range append(of.Metrics, resp.PodMetrics[0].Metrics...) {
		if labels[m.Name] != len(m.LabelValues) {
			t.Errorf("%s has %d labels, its descriptor %d", m.Name, len(m.LabelValues), labels[m.Name])
		}
		values[m.Name] = max(values[m.Name], m.Value.GetValue())
	}
	if of.ContainerId != id || values["container_memory_usage_bytes"] == 0 || values["container_spec_memory_limit_bytes"] != 64<<20 || values["container_processes"] < 1 {
		t.Errorf("the container's are %v", values)
	}
}

func TestHostPorts(t *testing.T) {
	f := newFixture(t)
	var now []HostPort
	f.Server.cfg.Ports = func(_ context.Context, list []HostPort) error { now = list; return nil }
	f.Server.cfg.Network = fixedNetwork{}
	pod := f.sandbox(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080, HostIp: "0.0.0.0"}, {ContainerPort: 81}, {ContainerPort: 53, HostPort: 53, HostIp: "192.0.2.1", Protocol: runtimeapi.Protocol_UDP}}
	})
	if len(now) != 2 || now[0].Host.IsValid() || now[0].HostPort != 8080 || now[0].Pods[0] != netip.MustParseAddrPort("10.9.8.7:80") ||
		now[1].Host != netip.MustParseAddr("192.0.2.1") || now[1].Protocol != "UDP" {
		t.Errorf("mapped are %+v", now)
	}
	if _, err := f.StopPodSandbox(f.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if len(now) != 0 {
		t.Errorf("after the pod mapped are %+v", now)
	}
}

type fixedNetwork struct{}

func (fixedNetwork) Attach(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.9.8.7")}, nil
}

func (fixedNetwork) Detach(context.Context, string) error { return nil }

func TestImageInUse(t *testing.T) {
	f := newFixture(t)
	f.run(f.sandbox(nil), "sleep 1000", nil)
	_, err := f.RemoveImage(f.ctx(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: f.image}})
	if status.Code(coded(err)) != codes.FailedPrecondition {
		t.Errorf("removing an image in use: %v", err)
	}
}
