package container

import (
	"context"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/sandbox"
	"knarr.dev/knarr/container/snapshot"
	"knarr.dev/knarr/kit/pressure"
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
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range s.measured(req.GetFilter()) {
		resp.Stats = append(resp.Stats, s.stats(c))
	}
	return resp, nil
}

// StreamContainerStats sends what ListContainerStats answers, one message a container.
func (s *Server) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, out runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	for _, c := range s.measured(req.GetFilter()) {
		if err := out.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: []*runtimeapi.ContainerStats{s.stats(c)}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) measured(f *runtimeapi.ContainerStatsFilter) []*container {
	return s.running(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector())
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
	bytes, inodes := s.written(c)
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.ID, Metadata: conf.GetMetadata(), Labels: conf.GetLabels(), Annotations: conf.GetAnnotations(),
		},
		Cpu: cpu(now, c.group, used), Memory: memory(now, c.group, used), Io: ioUsage(now, c.group),
		Swap: &runtimeapi.SwapUsage{Timestamp: now, SwapUsageBytes: value(used.Swap)},
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp: now, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.Root},
			UsedBytes: value(bytes), InodesUsed: value(inodes),
		},
	}
}

// layerUse is what a container's writable layer was found to hold.
type layerUse struct {
	mu            sync.Mutex
	at            time.Time
	bytes, inodes uint64
}

// written measures the container's writable layer. One second's answers are the same, as
// who asks for statistics asks for metrics, too, and the layer may be large.
func (s *Server) written(c *container) (bytes, inodes uint64) {
	c.layer.mu.Lock()
	defer c.layer.mu.Unlock()
	if now := s.cfg.Now(); now.Sub(c.layer.at) >= time.Second {
		c.layer.at = now
		c.layer.bytes, c.layer.inodes = snapshot.DiskUsage(s.containerUpper(c.ID))
	}
	return c.layer.bytes, c.layer.inodes
}

func cpu(now int64, g cgroup.Group, u cgroup.Stats) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: value(uint64(u.CPU)), Psi: psi(g, "cpu")}
}

func ioUsage(now int64, g cgroup.Group) *runtimeapi.IoUsage {
	return &runtimeapi.IoUsage{Timestamp: now, Psi: psi(g, "io")}
}

// psi is nil where the kernel does not tell.
func psi(g cgroup.Group, resource string) *runtimeapi.PsiStats {
	p, ok := g.Pressure(resource)
	if !ok {
		return nil
	}
	data := func(s pressure.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

func memory(now int64, g cgroup.Group, u cgroup.Stats) *runtimeapi.MemoryUsage {
	m := &runtimeapi.MemoryUsage{
		Timestamp: now, WorkingSetBytes: value(u.WorkingSet), UsageBytes: value(u.Memory), RssBytes: value(u.RSS),
		PageFaults: value(u.PageFaults), MajorPageFaults: value(u.MajorPageFaults), Psi: psi(g, "memory"),
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
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, p := range s.measuredPods(req.GetFilter()) {
		resp.Stats = append(resp.Stats, s.podStats(p))
	}
	return resp, nil
}

// StreamPodSandboxStats sends what ListPodSandboxStats answers, one message a pod.
func (s *Server) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, out runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	for _, p := range s.measuredPods(req.GetFilter()) {
		if err := out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: []*runtimeapi.PodSandboxStats{s.podStats(p)}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) measuredPods(f *runtimeapi.PodSandboxStatsFilter) []*pod {
	var list []*pod
	for _, p := range s.listPods() {
		p.mu.RLock()
		ready := p.Ready
		p.mu.RUnlock()
		if ready && matchID(f.GetId(), p.ID) && matchLabels(f.GetLabelSelector(), p.config().GetLabels()) {
			list = append(list, p)
		}
	}
	return list
}

func (s *Server) podStats(p *pod) *runtimeapi.PodSandboxStats {
	now, conf := s.cfg.Now().UnixNano(), p.config()
	group := s.layout.Group(p.Cgroup)
	used := group.Stats()
	linux := &runtimeapi.LinuxPodSandboxStats{
		Cpu: cpu(now, group, used), Memory: memory(now, group, used), Io: ioUsage(now, group),
		Process: &runtimeapi.ProcessUsage{Timestamp: now, ProcessCount: value(used.PIDs)}, Network: networkUsage(now, s.traffic(p)),
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

// traffic is what the pod's own network has carried; nothing for one on the host's.
func (s *Server) traffic(p *pod) []sandbox.Traffic {
	p.mu.RLock()
	path := p.spaces.Network
	p.mu.RUnlock()
	if path == "" {
		return nil
	}
	list, err := sandbox.ReadTraffic(path)
	if err != nil {
		s.cfg.Log.Debug("measuring a pod's network", "pod", p.ID, "error", err) // it may just be ending
	}
	return list
}

// networkUsage tells the first interface as the default one: pods have one.
func networkUsage(now int64, list []sandbox.Traffic) *runtimeapi.NetworkUsage {
	if len(list) == 0 {
		return nil
	}
	u := &runtimeapi.NetworkUsage{Timestamp: now}
	for i, t := range list {
		n := &runtimeapi.NetworkInterfaceUsage{
			Name: t.Name, RxBytes: value(t.ReceivedBytes), RxErrors: value(t.ReceiveErrors), TxBytes: value(t.SentBytes), TxErrors: value(t.SendErrors),
		}
		if i == 0 {
			u.DefaultInterface = n
		} else {
			u.Interfaces = append(u.Interfaces, n)
		}
	}
	return u
}
