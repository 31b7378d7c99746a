package agent

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/dra/dratest"
	"knarr.dev/knarr/agent/plugins"
	"knarr.dev/knarr/client"
)

func TestPodsUseClaims(t *testing.T) {
	kubelet := t.TempDir()
	registry := filepath.Join(kubelet, "plugins_registry")
	if err := os.Mkdir(registry, 0o700); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *Config) { c.KubeletDir = kubelet })
	w.run()
	w.node()
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "gpu", UID: "uid-gpu"}}
	claim.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{
		{Request: "any", Driver: "gpu.example.com", Pool: "n1", Device: "g0"}}}}
	claim.Status.ReservedFor = []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: "uid-p"}}
	w.create(client.Resource(resourceapi.SchemeGroupVersion.WithResource("resourceclaims")), claim)
	p := w.pod("p", func(p *corev1.Pod) {
		p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "mine", ResourceClaimName: ptr.To("gpu")}}
		p.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "mine"}}
	})
	// The driver is not there yet: the pod says so, and when it is tried again.
	w.event("Warning FailedPrepareDynamicResources Failed to prepare dynamic resources: ResourceClaim default/gpu: driver gpu.example.com: NodePrepareResources: DRA driver gpu.example.com is not registered")
	d := &dratest.Driver{Name: "gpu.example.com", Devices: func(string) []*draapi.Device {
		return []*draapi.Device{{RequestNames: []string{"any"}, PoolName: "n1", DeviceName: "g0", CdiDeviceIds: []string{"example.com/gpu=g0"}}}
	}}
	d.Start(t, registry)
	w.wait("p", "running", running)
	cfg := w.cri.Containers("c")[0].Config
	if len(cfg.CDIDevices) != 1 || cfg.CDIDevices[0].Name != "example.com/gpu=g0" {
		t.Errorf("CDI devices: %v", cfg.CDIDevices)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := plugins.Dial(filepath.Join(kubelet, podResourcesPath))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told, err := podresourcesapi.NewPodResourcesListerClient(conn).Get(ctx, &podresourcesapi.GetPodResourcesRequest{PodName: "p", PodNamespace: "default"})
	if err != nil || len(told.PodResources.Containers[0].DynamicResources) != 1 || told.PodResources.Containers[0].DynamicResources[0].ClaimResources[0].DeviceName != "g0" {
		t.Errorf("monitors are told %v, %v", told, err)
	}
	// The agent is away while the pod is deleted: the next one undoes it.
	w.stop()
	if got := d.Prepared(); len(got) != 1 {
		t.Fatalf("prepared: %q", got)
	}
	w.run()
	w.delete(p.Name, ptr.To(int64(0)))
	w.gone("p")
	if err := d.Wait(ctx, func(prepared []string) bool { return len(prepared) == 0 }); err != nil {
		t.Errorf("prepared: %q; %v", d.Prepared(), d.Calls())
	}
	w.runtime("nothing", (*critest.Runtime).Empty)
}
