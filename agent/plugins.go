package agent

import (
	"context"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"knarr.dev/knarr/agent/devices"
	"knarr.dev/knarr/agent/plugins"
	"knarr.dev/knarr/agent/podresources"
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
		Changed: a.devicesChanged, Clock: a.cfg.Clock, Log: a.cfg.Log,
	})
	if err != nil {
		return err
	}
	a.plugins = &plugins.Registry{
		Dir: filepath.Join(a.cfg.KubeletDir, registryDir), Clock: a.cfg.Clock, Log: a.cfg.Log,
		Handlers: map[string]plugins.Handler{registerapi.DevicePlugin: a.devices},
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
	cfg := podresources.Config{Pods: a.pods.snapshots, Devices: a.devices.Held, AllDevices: a.devices.All}
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
