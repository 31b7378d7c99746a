package container

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources changes the limits of a container, running or not.
func (s *Server) UpdateContainerResources(_ context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.RLock()
	ended := c.state() == runtimeapi.ContainerState_CONTAINER_EXITED
	c.mu.RUnlock()
	if ended || c.gone {
		return nil, fmt.Errorf("%w: container %s has ended", errState, c.ID)
	}
	if r := req.GetLinux(); r != nil {
		if err := c.group.Apply(limits(r)); err != nil {
			return nil, fmt.Errorf("changing the limits of container %s: %w", c.ID, err)
		}
		c.mu.Lock()
		merge(c.config(), r)
		c.mu.Unlock()
		if err := save(s.containerRecord(c.ID), &c.containerRecord); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources changes the limits of a pod's own group.
func (s *Server) UpdatePodSandboxResources(_ context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if r := req.GetResources(); r != nil {
		if err := s.layout.Group(p.Cgroup).Apply(podLimits(r, req.GetOverhead())); err != nil {
			return nil, fmt.Errorf("changing the limits of sandbox %s: %w", p.ID, err)
		}
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// merge notes changed limits in a container's configuration; zero values leave
// what was there. The message is replaced, as others may be reading the old one.
func merge(conf *runtimeapi.ContainerConfig, r *runtimeapi.LinuxContainerResources) {
	old := conf.GetLinux().GetResources()
	n := &runtimeapi.LinuxContainerResources{
		CpuPeriod: or(r.GetCpuPeriod(), old.GetCpuPeriod()), CpuQuota: or(r.GetCpuQuota(), old.GetCpuQuota()),
		CpuShares: or(r.GetCpuShares(), old.GetCpuShares()), MemoryLimitInBytes: or(r.GetMemoryLimitInBytes(), old.GetMemoryLimitInBytes()),
		OomScoreAdj: or(r.GetOomScoreAdj(), old.GetOomScoreAdj()), CpusetCpus: or(r.GetCpusetCpus(), old.GetCpusetCpus()),
		CpusetMems: or(r.GetCpusetMems(), old.GetCpusetMems()), MemorySwapLimitInBytes: or(r.GetMemorySwapLimitInBytes(), old.GetMemorySwapLimitInBytes()),
		HugepageLimits: old.GetHugepageLimits(), Unified: old.GetUnified(),
	}
	if len(r.GetHugepageLimits()) > 0 {
		n.HugepageLimits = r.GetHugepageLimits()
	}
	if len(r.GetUnified()) > 0 {
		n.Unified = r.GetUnified()
	}
	if conf.Linux == nil {
		conf.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	conf.Linux.Resources = n
}

func or[T comparable](a, b T) T {
	var zero T
	if a != zero {
		return a
	}
	return b
}
