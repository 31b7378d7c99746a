package container

import (
	"context"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
	"knarr.dev/knarr/container/sandbox"
	"knarr.dev/knarr/kit/pressure"
)

// metric is one of cAdvisor's metrics, under whose names monitoring knows
// containers. The CRI's values are whole numbers: times in seconds are cut.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // beside podLabels
	container  func(*sample) []reading
	pod        func(*sample) []reading // nil: pods do not have it
}

// reading is one value of a metric and those of its own labels.
type reading struct {
	value  uint64
	labels []string
}

// sample is what the metrics of one pod or container are read from.
type sample struct {
	cgroup.Stats
	group     cgroup.Group
	written   uint64 // bytes of the writable layer
	started   time.Time
	now       time.Time
	traffic   []sandbox.Traffic
	transfers []cgroup.Transfer
	pressures map[string]*pressure.Pressure
	resources *runtimeapi.LinuxContainerResources
}

// podLabels name the object that a value belongs to, as cAdvisor's do.
var podLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

func one(n uint64) []reading { return []reading{{value: n}} }

func seconds(d time.Duration) []reading { return one(uint64(d / time.Second)) }

// ofGroup is a metric that pods and containers have alike.
func ofGroup(name, help string, kind runtimeapi.MetricType, read func(*sample) []reading) metric {
	return metric{name: name, help: help, kind: kind, container: read, pod: read}
}

func ofNetwork(name, help string, read func(*sandbox.Traffic) uint64) metric {
	return metric{name: name, help: help, kind: counter, labels: []string{"interface"}, pod: func(s *sample) []reading {
		var list []reading
		for i := range s.traffic {
			list = append(list, reading{read(&s.traffic[i]), []string{s.traffic[i].Name}})
		}
		return list
	}}
}

func ofContainer(name, help string, read func(*sample) []reading) metric {
	return metric{name: name, help: help, kind: gauge, container: read}
}

// ofDisks is a metric of what went to and from each block device.
func ofDisks(name, help string, read func(*cgroup.Transfer) uint64) metric {
	m := ofGroup(name, help, counter, func(s *sample) []reading {
		var list []reading
		for i := range s.transfers {
			list = append(list, reading{read(&s.transfers[i]), []string{s.transfers[i].Device}})
		}
		return list
	})
	m.labels = []string{"device"}
	return m
}

// quota leaves out what only groups with a CPU quota have.
func (s *sample) quota(r []reading) []reading {
	if s.Periods == 0 {
		return nil
	}
	return r
}

// pressureMetric is the time that some or all tasks waited for a resource.
func pressureMetric(name, help, resource string, read func(pressure.Pressure) time.Duration) metric {
	return ofGroup(name, help, counter, func(s *sample) []reading {
		p := s.pressure(resource)
		if p == nil {
			return nil
		}
		return seconds(read(*p))
	})
}

// pressure reads the group's, once for all metrics of a resource; nil: it is not known.
func (s *sample) pressure(resource string) *pressure.Pressure {
	p, read := s.pressures[resource]
	if !read {
		if got, ok := s.group.Pressure(resource); ok {
			p = &got
		}
		if s.pressures == nil {
			s.pressures = map[string]*pressure.Pressure{}
		}
		s.pressures[resource] = p
	}
	return p
}

// metrics lists them all; the order is that of the descriptors.
func metrics() []metric {
	some := func(p pressure.Pressure) time.Duration { return p.Some.Total }
	full := func(p pressure.Pressure) time.Duration { return p.Full.Total }
	return []metric{
		ofGroup("container_cpu_usage_seconds_total", "CPU time used", counter, func(s *sample) []reading { return seconds(s.CPU) }),
		ofGroup("container_cpu_user_seconds_total", "CPU time used in user mode", counter, func(s *sample) []reading { return seconds(s.User) }),
		ofGroup("container_cpu_system_seconds_total", "CPU time used in the kernel", counter, func(s *sample) []reading { return seconds(s.System) }),
		ofGroup("container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed", counter, func(s *sample) []reading { return s.quota(one(s.Periods)) }),
		ofGroup("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up", counter, func(s *sample) []reading { return s.quota(one(s.Throttled)) }),
		ofGroup("container_cpu_cfs_throttled_seconds_total", "Time spent waiting for the next period of the CPU quota", counter, func(s *sample) []reading { return s.quota(seconds(s.ThrottledTime)) }),
		ofGroup("container_memory_usage_bytes", "Memory in use, with page cache", gauge, func(s *sample) []reading { return one(s.Memory) }),
		ofGroup("container_memory_working_set_bytes", "Memory in use, without inactive file pages", gauge, func(s *sample) []reading { return one(s.WorkingSet) }),
		ofGroup("container_memory_rss", "Anonymous memory in bytes", gauge, func(s *sample) []reading { return one(s.RSS) }),
		ofGroup("container_memory_cache", "Page cache in bytes", gauge, func(s *sample) []reading { return one(s.Cache) }),
		ofGroup("container_memory_mapped_file", "Mapped files in bytes", gauge, func(s *sample) []reading { return one(s.Mapped) }),
		ofGroup("container_memory_swap", "Swap in bytes", gauge, func(s *sample) []reading { return one(s.Swap) }),
		ofGroup("container_memory_max_usage_bytes", "The most memory that was in use", gauge, func(s *sample) []reading { return one(s.Peak) }),
		ofGroup("container_memory_failcnt", "How often the memory limit was hit", counter, func(s *sample) []reading { return one(s.Refused) }),
		{name: "container_memory_failures_total", help: "Page faults", kind: counter, labels: []string{"failure_type", "scope"}, container: faults, pod: faults},
		ofGroup("container_oom_events_total", "Processes killed for want of memory", counter, func(s *sample) []reading { return one(s.group.OOMKills()) }),
		ofContainer("container_processes", "Processes", func(s *sample) []reading {
			pids, err := s.group.Processes()
			if err != nil {
				return nil
			}
			return one(uint64(len(pids)))
		}),
		ofGroup("container_threads", "Threads", gauge, func(s *sample) []reading { return one(s.PIDs) }),
		ofGroup("container_threads_max", "The limit of tasks, 0 for none", gauge, func(s *sample) []reading { return one(s.MaxPIDs) }),
		ofContainer("container_fs_usage_bytes", "Disk space of the writable layer", func(s *sample) []reading { return one(s.written) }),
		ofDisks("container_fs_reads_total", "Reads of block devices", func(t *cgroup.Transfer) uint64 { return t.Reads }),
		ofDisks("container_fs_reads_bytes_total", "Bytes read from block devices", func(t *cgroup.Transfer) uint64 { return t.ReadBytes }),
		ofDisks("container_fs_writes_total", "Writes to block devices", func(t *cgroup.Transfer) uint64 { return t.Writes }),
		ofDisks("container_fs_writes_bytes_total", "Bytes written to block devices", func(t *cgroup.Transfer) uint64 { return t.WriteBytes }),
		ofContainer("container_start_time_seconds", "Start, in seconds since the epoch", func(s *sample) []reading { return one(uint64(s.started.Unix())) }),
		ofGroup("container_last_seen", "When this was measured, in seconds since the epoch", gauge, func(s *sample) []reading { return one(uint64(s.now.Unix())) }),
		ofContainer("container_spec_cpu_shares", "CPU shares", func(s *sample) []reading { return positive(s.resources.GetCpuShares()) }),
		ofContainer("container_spec_cpu_period", "Period of the CPU quota in microseconds", func(s *sample) []reading { return positive(s.resources.GetCpuPeriod()) }),
		ofContainer("container_spec_cpu_quota", "CPU quota in microseconds", func(s *sample) []reading { return positive(s.resources.GetCpuQuota()) }),
		ofContainer("container_spec_memory_limit_bytes", "Memory limit", func(s *sample) []reading { return positive(s.resources.GetMemoryLimitInBytes()) }),
		ofNetwork("container_network_receive_bytes_total", "Bytes received", func(t *sandbox.Traffic) uint64 { return t.ReceivedBytes }),
		ofNetwork("container_network_receive_packets_total", "Packets received", func(t *sandbox.Traffic) uint64 { return t.ReceivedPackets }),
		ofNetwork("container_network_receive_packets_dropped_total", "Received packets that were dropped", func(t *sandbox.Traffic) uint64 { return t.ReceiveDrops }),
		ofNetwork("container_network_receive_errors_total", "Errors while receiving", func(t *sandbox.Traffic) uint64 { return t.ReceiveErrors }),
		ofNetwork("container_network_transmit_bytes_total", "Bytes sent", func(t *sandbox.Traffic) uint64 { return t.SentBytes }),
		ofNetwork("container_network_transmit_packets_total", "Packets sent", func(t *sandbox.Traffic) uint64 { return t.SentPackets }),
		ofNetwork("container_network_transmit_packets_dropped_total", "Packets to be sent that were dropped", func(t *sandbox.Traffic) uint64 { return t.SendDrops }),
		ofNetwork("container_network_transmit_errors_total", "Errors while sending", func(t *sandbox.Traffic) uint64 { return t.SendErrors }),
		pressureMetric("container_pressure_cpu_waiting_seconds_total", "Time that some tasks waited for a CPU", "cpu", some),
		pressureMetric("container_pressure_cpu_stalled_seconds_total", "Time that all tasks waited for a CPU", "cpu", full),
		pressureMetric("container_pressure_memory_waiting_seconds_total", "Time that some tasks waited for memory", "memory", some),
		pressureMetric("container_pressure_memory_stalled_seconds_total", "Time that all tasks waited for memory", "memory", full),
		pressureMetric("container_pressure_io_waiting_seconds_total", "Time that some tasks waited for I/O", "io", some),
		pressureMetric("container_pressure_io_stalled_seconds_total", "Time that all tasks waited for I/O", "io", full),
	}
}

func faults(s *sample) []reading {
	minor := s.PageFaults - min(s.MajorPageFaults, s.PageFaults)
	return []reading{{minor, []string{"pgfault", "container"}}, {s.MajorPageFaults, []string{"pgmajfault", "container"}}}
}

// positive leaves out what is not limited.
func positive(n int64) []reading {
	if n <= 0 {
		return nil
	}
	return one(uint64(n))
}

// ListMetricDescriptors names the metrics of ListPodSandboxMetrics.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range metrics() {
		resp.Descriptors = append(resp.Descriptors, &runtimeapi.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: slices.Concat(podLabels, m.labels),
		})
	}
	return resp, nil
}

// ListPodSandboxMetrics measures every ready pod and its running containers.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	all := metrics()
	for _, p := range s.measuredPods(nil) {
		resp.PodMetrics = append(resp.PodMetrics, s.podMetrics(p, all))
	}
	return resp, nil
}

// StreamPodSandboxMetrics sends what ListPodSandboxMetrics answers, one message a pod.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	all := metrics()
	for _, p := range s.measuredPods(nil) {
		m := []*runtimeapi.PodSandboxMetrics{s.podMetrics(p, all)}
		if err := out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: m}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) podMetrics(p *pod, all []metric) *runtimeapi.PodSandboxMetrics {
	meta, group := p.config().GetMetadata(), s.layout.Group(p.Cgroup)
	sm := &sample{Stats: group.Stats(), group: group, now: s.cfg.Now(), started: p.Created, traffic: s.traffic(p), transfers: group.Transfers()}
	out := &runtimeapi.PodSandboxMetrics{
		PodSandboxId: p.ID,
		Metrics:      read(all, sm, []string{"", p.Cgroup, "", "", meta.GetNamespace(), meta.GetName()}, func(m *metric) func(*sample) []reading { return m.pod }),
	}
	for _, c := range s.running("", p.ID, nil) {
		out.ContainerMetrics = append(out.ContainerMetrics, s.containerMetrics(c, all))
	}
	return out
}

func (s *Server) containerMetrics(c *container, all []metric) *runtimeapi.ContainerMetrics {
	pod := c.pod.config().GetMetadata()
	c.mu.RLock()
	sm := &sample{
		group: c.group, started: c.Started, now: s.cfg.Now(),
		resources: c.config().GetLinux().GetResources(),
	}
	labels := []string{c.config().GetMetadata().GetName(), c.Cgroup, c.ImageRef, c.ID, pod.GetNamespace(), pod.GetName()}
	c.mu.RUnlock()
	sm.written, _ = s.written(c)
	sm.Stats, sm.transfers = c.group.Stats(), c.group.Transfers()
	return &runtimeapi.ContainerMetrics{
		ContainerId: c.ID,
		Metrics:     read(all, sm, labels, func(m *metric) func(*sample) []reading { return m.container }),
	}
}

// read takes every metric that of selects from the sample.
func read(all []metric, sm *sample, labels []string, of func(*metric) func(*sample) []reading) []*runtimeapi.Metric {
	var list []*runtimeapi.Metric
	for i := range all {
		m := &all[i]
		f := of(m)
		if f == nil {
			continue
		}
		for _, r := range f(sm) {
			list = append(list, &runtimeapi.Metric{
				Name: m.name, MetricType: m.kind, LabelValues: slices.Concat(labels, r.labels), Value: value(r.value),
			})
		}
	}
	return list
}
