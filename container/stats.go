package container

import (
	"context"
	"fmt"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/snapshot"
)

func value(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

// ContainerStats measures one container.
func (s *Server) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.stats(c)}, nil
}

// ListContainerStats measures the containers that the filter selects.
func (s *Server) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range s.running(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) {
		resp.Stats = append(resp.Stats, s.stats(c))
	}
	return resp, nil
}

func (s *Server) running(id, podID string, labels map[string]string) []*container {
	return s.listContainers(func(c *container) bool {
		c.mu.RLock()
		defer c.mu.RUnlock()
		return c.state() == runtimeapi.ContainerState_CONTAINER_RUNNING &&
			matchID(id, c.ID) && matchID(podID, c.Pod) && matchLabels(labels, c.config().GetLabels())
	})
}

func (s *Server) stats(c *container) *runtimeapi.ContainerStats {
	now, conf := s.cfg.Now().UnixNano(), c.config()
	used := c.group.Stats()
	dir := filepath.Join(s.containerDir(c.ID), "upper")
	bytes, inodes := snapshot.DiskUsage(dir)
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.ID, Metadata: conf.GetMetadata(), Labels: conf.GetLabels(), Annotations: conf.GetAnnotations(),
		},
		Cpu: cpu(now, used), Memory: memory(now, used),
		Swap: &runtimeapi.SwapUsage{Timestamp: now, SwapUsageBytes: value(used.Swap)},
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp: now, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.Root},
			UsedBytes: value(bytes), InodesUsed: value(inodes),
		},
	}
}

func cpu(now int64, u cgroup.Stats) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: value(uint64(u.CPU))}
}

func memory(now int64, u cgroup.Stats) *runtimeapi.MemoryUsage {
	m := &runtimeapi.MemoryUsage{
		Timestamp: now, WorkingSetBytes: value(u.WorkingSet), UsageBytes: value(u.Memory), RssBytes: value(u.RSS),
		PageFaults: value(u.PageFaults), MajorPageFaults: value(u.MajorPageFaults),
	}
	if u.MemoryLimit > 0 {
		m.AvailableBytes = value(u.MemoryLimit - min(u.WorkingSet, u.MemoryLimit))
	}
	return m
}

// PodSandboxStats measures one pod.
func (s *Server) PodSandboxStats(_ context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(p)}, nil
}

// ListPodSandboxStats measures the pods that the filter selects.
func (s *Server) ListPodSandboxStats(_ context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, p := range s.listPods() {
		p.mu.RLock()
		ready := p.Ready
		p.mu.RUnlock()
		if ready && matchID(f.GetId(), p.ID) && matchLabels(f.GetLabelSelector(), p.config().GetLabels()) {
			resp.Stats = append(resp.Stats, s.podStats(p))
		}
	}
	return resp, nil
}

func (s *Server) podStats(p *pod) *runtimeapi.PodSandboxStats {
	now, conf := s.cfg.Now().UnixNano(), p.config()
	used := s.layout.Group(p.Cgroup).Stats()
	linux := &runtimeapi.LinuxPodSandboxStats{
		Cpu: cpu(now, used), Memory: memory(now, used), Process: &runtimeapi.ProcessUsage{Timestamp: now, ProcessCount: value(used.PIDs)},
	}
	for _, c := range s.running("", p.ID, nil) {
		linux.Containers = append(linux.Containers, s.stats(c))
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: p.ID, Metadata: conf.GetMetadata(), Labels: conf.GetLabels(), Annotations: conf.GetAnnotations(),
		},
		Linux: linux,
	}
}

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
		if err := s.layout.Group(p.Cgroup).Apply(limits(r)); err != nil {
			return nil, fmt.Errorf("changing the limits of sandbox %s: %w", p.ID, err)
		}
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
