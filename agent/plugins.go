package agent

import (
	"context"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"knarr.dev/knarr/agent/devices"
	"knarr.dev/knarr/agent/dra"
	"knarr.dev/knarr/agent/plugins"
	"knarr.dev/knarr/agent/podresources"
	"knarr.dev/knarr/client"
)

// Folders below [Config.KubeletDir], as kubelets have them.
const (
	devicePluginsDir = "device-plugins"
	registryDir      = "plugins_registry"
	podResourcesPath = "pod-resources/kubelet.sock"
)

// openPlugins prepares what plugins add to the node.
func (a *Agent) openPlugins() (err error) {
	if a.cfg.KubeletDir == "" {
		return nil
	}
	a.devices, err = devices.New(devices.Config{
		Dir: filepath.Join(a.cfg.KubeletDir, devicePluginsDir), File: filepath.Join(a.cfg.Root, "devices.json"),
		Registered: func(resource string) { a.deps.Metrics.PluginRegistered(resource) }, Changed: a.devicesChanged, Clock: a.cfg.Clock, Log: a.cfg.Log,
	})
	if err != nil {
		return err
	}
	a.claims, err = dra.New(dra.Config{Claim: a.claim, File: filepath.Join(a.cfg.Root, "claims.json"), Log: a.cfg.Log})
	if err != nil {
		return err
	}
	a.plugins = &plugins.Registry{
		Dir: filepath.Join(a.cfg.KubeletDir, registryDir), Clock: a.cfg.Clock, Log: a.cfg.Log,
		Handlers: map[string]plugins.Handler{registerapi.DevicePlugin: a.devices, registerapi.DRAPlugin: a.claims},
	}
	return nil
}

// extended is what plugins add to the node's capacity; nil: there are none.
func (a *Agent) extended() func() (capacity, allocatable corev1.ResourceList) {
	if a.devices == nil {
		return nil
	}
	return a.devices.Capacity
}

// devicesChanged has the node and the pods that use devices tell how these fare.
func (a *Agent) devicesChanged(pods []string) {
	a.node.Changed()
	for _, uid := range pods {
		if act := a.pods.actor(uid); act != nil {
			act.Look()
		}
	}
}

// tellResources serves monitors until ctx ends.
func (a *Agent) tellResources(ctx context.Context) error {
	cfg := podresources.Config{Pods: a.pods.snapshots, Claims: a.claimed, Devices: a.devices.Held, AllDevices: a.devices.All}
	if a.cpus != nil {
		cfg.CPUs, cfg.AllCPUs = a.cpus.Exclusive, a.cpus.Allocatable
	}
	if a.memory != nil {
		cfg.Memory, cfg.AllMemory = a.memory.Held, a.memory.All
	}
	err := podresources.New(cfg).Serve(ctx, filepath.Join(a.cfg.KubeletDir, podResourcesPath))
	if err != nil && ctx.Err() == nil {
		a.cfg.Log.Error("monitors are not told which containers have which devices", "error", err)
		<-ctx.Done()
	}
	return ctx.Err()
}

// claim reads a ResourceClaim.
func (a *Agent) claim(ctx context.Context, namespace, name string) (*resourceapi.ResourceClaim, error) {
	return client.Get[*resourceapi.ResourceClaim](ctx, a.cfg.Client, client.Key{Resource: resourceapi.SchemeGroupVersion.WithResource("resourceclaims"), Namespace: namespace, Name: name})
}

// claimed is what a container has by ResourceClaims, for monitors.
func (a *Agent) claimed(pod *corev1.Pod, container string) []*podresourcesapi.DynamicResource {
	var out []*podresourcesapi.DynamicResource
	for _, u := range a.claims.Uses(pod, container) {
		r := &podresourcesapi.DynamicResource{ClaimName: u.Name, ClaimNamespace: u.Namespace}
		for _, d := range u.Devices {
			c := &podresourcesapi.ClaimResource{DriverName: d.Driver, PoolName: d.Pool, DeviceName: d.Name, ShareId: d.Share}
			for _, id := range d.CDI {
				c.CdiDevices = append(c.CdiDevices, &podresourcesapi.CDIDevice{Name: id})
			}
			r.ClaimResources = append(r.ClaimResources, c)
		}
		out = append(out, r)
	}
	return out
}

// claimsRetry is the pause before claims of pods that are gone are undone again.
const claimsRetry = 10 * time.Second

// dropClaims undoes the claims of pods that are gone, once their drivers are there.
func (a *Agent) dropClaims(ctx context.Context, keep map[string]bool) {
	for ctx.Err() == nil {
		err := a.claims.Keep(ctx, keep)
		if err == nil {
			return
		}
		a.cfg.Log.Warn("claims of pods that are gone stay prepared; it is tried again", "pause", claimsRetry, "error", err)
		t := a.cfg.Clock.NewTimer(claimsRetry)
		select {
		case <-t.C():
		case <-ctx.Done():
		}
		t.Stop()
	}
}
