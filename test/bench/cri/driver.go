package main

import (
	"context"
	"fmt"
	"sync/atomic"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// driver calls a runtime as a kubelet does.
type driver struct {
	*contender
	n atomic.Int64
}

func (d *driver) image(name string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: d.registry + "/" + name}
}

func (d *driver) pull(ctx context.Context, name string) (string, error) {
	r, err := d.client.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: d.image(name)})
	if err != nil {
		return "", fmt.Errorf("pulling %s: %w", name, err)
	}
	return r.ImageRef, nil
}

// workload is what containers run; its argument tells them from pause processes.
var workload = []string{"sleep", "987654321"}

// pod is a running one.
type pod struct{ sandbox, container string }

// run makes a pod with a network and one container, and starts it.
func (d *driver) run(ctx context.Context) (pod, error) {
	n := d.n.Add(1)
	uid := fmt.Sprintf("uid-%d", n)
	conf := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprintf("pod-%d", n), Namespace: "bench", Uid: uid},
		Hostname: "bench", LogDirectory: fmt.Sprintf("%s/logs/%d", d.dir, n), DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + group + "/pods/" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	var p pod
	s, err := d.client.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: conf, RuntimeHandler: d.handler})
	if err != nil {
		return p, fmt.Errorf("making a sandbox: %w", err)
	}
	p.sandbox = s.PodSandboxId
	c, err := d.client.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, SandboxConfig: conf, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: d.image("box:1"), Command: workload, LogPath: "c.log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: conf.Linux.SecurityContext.NamespaceOptions,
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}})
	if err != nil {
		return p, fmt.Errorf("creating a container: %w", err)
	}
	p.container = c.ContainerId
	if _, err := d.client.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
		return p, fmt.Errorf("starting a container: %w", err)
	}
	return p, nil
}

// remove ends a pod with no grace and removes all of it.
func (d *driver) remove(ctx context.Context, sandbox string) error {
	if _, err := d.client.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("stopping a sandbox: %w", err)
	}
	if _, err := d.client.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("removing a sandbox: %w", err)
	}
	return nil
}
