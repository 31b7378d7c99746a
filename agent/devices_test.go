package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/devices/devicetest"
	"knarr.dev/knarr/agent/plugins"
	"knarr.dev/knarr/client"
)

const gpu = "example.com/gpu"

func wantsGPUs(n int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		list := corev1.ResourceList{gpu: *resource.NewQuantity(n, resource.DecimalSI)}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: list, Requests: list}
	}
}

// allocatable waits until the node says that it has so many of a resource.
func (w *world) allocatable(name corev1.ResourceName, capacity, free int64) {
	w.t.Helper()
	found := make(chan struct{}, 100)
	defer w.api.Cache(client.Nodes, "").Subscribe(func(e client.Event) {
		st := e.Object.(*corev1.Node).Status
		a, okA := st.Capacity[name]
		b, okB := st.Allocatable[name]
		if okA && okB && a.Value() == capacity && b.Value() == free {
			found <- struct{}{}
		}
	})()
	select {
	case <-found:
	case <-time.After(10 * time.Second):
		w.t.Fatalf("the node never had %d of %s, %d allocatable", capacity, name, free)
	}
}

func TestPodsUseDevices(t *testing.T) {
	kubelet := t.TempDir()
	dir := filepath.Join(kubelet, "device-plugins")
	if err := os.Mkdir(dir, 0o700); err != nil { // plugins may be there before the agent
		t.Fatal(err)
	}
	w := newWorld(t, func(c *Config) { c.KubeletDir = kubelet })
	w.run()
	p := &devicetest.Plugin{Resource: gpu, Answer: func(ids []string) *pluginapi.ContainerAllocateResponse {
		return &pluginapi.ContainerAllocateResponse{Envs: map[string]string{"GPU": ids[0]}, CdiDevices: []*pluginapi.CDIDevice{{Name: "example.com/gpu=" + ids[0]}},
			Devices: []*pluginapi.DeviceSpec{{HostPath: "/dev/null", ContainerPath: "/dev/gpu", Permissions: "r"}}}
	}}
	p.Set(devicetest.Device("g0"), devicetest.Device("g1"))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w.node()
	p.Start(t, dir)
	if err := p.Register(ctx, dir); err != nil {
		t.Fatal(err)
	}
	w.allocatable(gpu, 2, 2)
	w.pod("a", wantsGPUs(1))
	w.wait("a", "running with a healthy device", func(p *corev1.Pod) bool {
		return running(p) && health(p) == "g0=Healthy"
	})
	cfg := w.cri.Containers("c")[0].Config
	if i := slices.IndexFunc(cfg.Devices, func(d *runtimeapi.Device) bool { return d.ContainerPath == "/dev/gpu" && d.Permissions == "r" }); i < 0 {
		t.Errorf("devices of the container: %v", cfg.Devices)
	}
	if len(cfg.CDIDevices) != 1 || cfg.CDIDevices[0].Name != "example.com/gpu=g0" {
		t.Errorf("CDI devices of the container: %v", cfg.CDIDevices)
	}
	if !slices.ContainsFunc(cfg.Envs, func(e *runtimeapi.KeyValue) bool { return e.Key == "GPU" && string(e.Value) == "g0" }) {
		t.Errorf("environment: %v", cfg.Envs)
	}
	w.pod("b", wantsGPUs(2))
	b := w.wait("b", "failed", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	const why = "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1, which is unexpected"
	if b.Status.Reason != "UnexpectedAdmissionError" || b.Status.Message != why {
		t.Errorf("%s: %s", b.Status.Reason, b.Status.Message)
	}
	conn, err := plugins.Dial(filepath.Join(kubelet, "pod-resources/kubelet.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told, err := podresourcesapi.NewPodResourcesListerClient(conn).Get(ctx, &podresourcesapi.GetPodResourcesRequest{PodName: "a", PodNamespace: "default"})
	if err != nil || len(told.PodResources.Containers) != 1 || told.PodResources.Containers[0].Devices[0].DeviceIds[0] != "g0" {
		t.Errorf("monitors are told %v, %v", told, err)
	}
	// What a pod has survives the agent; what is ill is told.
	w.stop()
	w.run()
	if err := p.Register(ctx, dir); err != nil {
		t.Fatal(err)
	}
	w.allocatable(gpu, 2, 2)
	ill := devicetest.Device("g0")
	ill.Health = pluginapi.Unhealthy
	p.Set(ill, devicetest.Device("g1"))
	w.wait("a", "told of its device's illness", func(p *corev1.Pod) bool { return p != nil && health(p) == "g0=Unhealthy" })
	w.allocatable(gpu, 2, 1)
	w.pod("c", wantsGPUs(1))
	w.wait("c", "running with the other device", func(p *corev1.Pod) bool { return running(p) && health(p) == "g1=Healthy" })
	for _, name := range []string{"a", "b", "c"} {
		w.delete(name, ptr.To(int64(0)))
		w.gone(name)
	}
	w.runtime("nothing", (*critest.Runtime).Empty)
	p.Set(devicetest.Device("g0"))
	w.allocatable(gpu, 1, 1)
	w.pod("d", wantsGPUs(1))
	w.wait("d", "running", running)
}

// health is the first device of the first container and how it fares.
func health(p *corev1.Pod) string {
	if len(p.Status.ContainerStatuses) == 0 || len(p.Status.ContainerStatuses[0].AllocatedResourcesStatus) == 0 {
		return ""
	}
	st := p.Status.ContainerStatuses[0].AllocatedResourcesStatus[0]
	return string(st.Resources[0].ResourceID) + "=" + string(st.Resources[0].Health)
}
