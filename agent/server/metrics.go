package server

import (
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"knarr.dev/knarr/agent/podspec"
)

// resourceMetrics answers what metrics-server reads.
func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", textFormat)
	var e exposition
	failed := 0.0
	reading, err := s.cfg.Usage.Read(r.Context())
	if err != nil {
		failed = 1
		s.cfg.Log.Warn("statistics for /metrics/resource", "error", err)
	} else {
		resources(&e, &reading.Summary)
	}
	e.add("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise", &failed, time.Time{})
	_ = e.write(w) // the client is gone
}

func resources(e *exposition, sum *stats.Summary) {
	usage := func(scope, title string, c *stats.CPUStats, m *stats.MemoryStats, sw *stats.SwapStats, labels ...string) {
		if c != nil {
			e.add(scope+"_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the "+title+" in core-seconds", seconds(c.UsageCoreNanoSeconds), c.Time.Time, labels...)
		}
		if m != nil {
			e.add(scope+"_memory_working_set_bytes", "gauge", "Current working set of the "+title+" in bytes", number(m.WorkingSetBytes), m.Time.Time, labels...)
		}
		if sw != nil {
			e.add(scope+"_swap_usage_bytes", "gauge", "Current swap usage of the "+title+" in bytes. Reported only on non-windows systems", number(sw.SwapUsageBytes), sw.Time.Time, labels...)
		}
	}
	usage("node", "node", sum.Node.CPU, sum.Node.Memory, sum.Node.Swap)
	for i := range sum.Pods {
		p := &sum.Pods[i]
		usage("pod", "pod", p.CPU, p.Memory, p.Swap, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name)
		for j := range p.Containers {
			c := &p.Containers[j]
			labels := []string{"container", c.Name, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name}
			usage("container", "container", c.CPU, c.Memory, c.Swap, labels...)
			if !c.StartTime.IsZero() {
				began := float64(c.StartTime.UnixNano()) / 1e9
				e.add("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds", &began, time.Time{}, labels...)
			}
		}
	}
}

// cadvisorMetrics answers the containers' statistics under cAdvisor's names. A row
// of a pod as a whole has an empty container.
func (s *Server) cadvisorMetrics(w http.ResponseWriter, r *http.Request) {
	reading, err := s.cfg.Usage.Read(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	pods := map[string]*corev1.Pod{}
	for _, p := range s.cfg.Pods() {
		pods[string(p.UID)] = p
	}
	var e exposition
	if n := s.cfg.Node(); n != nil {
		cores, bytes := float64(n.Status.Capacity.Cpu().Value()), float64(n.Status.Capacity.Memory().Value())
		e.add("machine_cpu_cores", "gauge", "Number of logical CPU cores.", &cores, time.Time{}, "boot_id", n.Status.NodeInfo.BootID, "machine_id", n.Status.NodeInfo.MachineID, "system_uuid", n.Status.NodeInfo.SystemUUID)
		e.add("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.", &bytes, time.Time{}, "boot_id", n.Status.NodeInfo.BootID, "machine_id", n.Status.NodeInfo.MachineID, "system_uuid", n.Status.NodeInfo.SystemUUID)
	}
	root := objectOf("", "/", "", "", "", "")
	cadvisorUsage(&e, reading.Node.CPU, reading.Node.Memory, reading.Node.Swap, root)
	cadvisorPressure(&e, reading.Node.CPU, reading.Node.Memory, reading.Node.IO, root)
	for i := range reading.Pods {
		p := &reading.Pods[i]
		pod := pods[p.PodRef.UID]
		if pod == nil {
			continue
		}
		group := podspec.CgroupParent(s.cfg.CgroupRoot, pod)
		labels := func(container, id, image, name string) []string {
			return objectOf(container, id, image, name, p.PodRef.Namespace, p.PodRef.Name)
		}
		cadvisorUsage(&e, p.CPU, p.Memory, p.Swap, labels("", group, "", ""))
		cadvisorPressure(&e, p.CPU, p.Memory, p.IO, labels("", group, "", ""))
		cadvisorNetwork(&e, p.Network, labels("", group, "", ""))
		for j := range p.Containers {
			c := &p.Containers[j]
			image, id := shown(pod, c.Name)
			l := labels(c.Name, group+"/"+id, image, id)
			cadvisorUsage(&e, c.CPU, c.Memory, c.Swap, l)
			cadvisorPressure(&e, c.CPU, c.Memory, c.IO, l)
			if c.Rootfs != nil {
				e.add("container_fs_usage_bytes", "gauge", "Number of bytes that are consumed by the container on this filesystem.", number(c.Rootfs.UsedBytes), c.Rootfs.Time.Time, append(l, "device", "")...)
			}
			cadvisorSpec(&e, pod, c, l)
		}
	}
	s.runtimeMetrics(r.Context(), &e, pods)
	w.Header().Set("Content-Type", textFormat)
	_ = e.write(w) // the client is gone
}

func cadvisorUsage(e *exposition, c *stats.CPUStats, m *stats.MemoryStats, sw *stats.SwapStats, labels []string) {
	if c != nil {
		e.add("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", seconds(c.UsageCoreNanoSeconds), c.Time.Time, append([]string{"cpu", "total"}, labels...)...)
	}
	if m != nil {
		at := m.Time.Time
		e.add("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed", number(m.UsageBytes), at, labels...)
		e.add("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", number(m.WorkingSetBytes), at, labels...)
		e.add("container_memory_rss", "gauge", "Size of RSS in bytes.", number(m.RSSBytes), at, labels...)
		scope := append([]string{"scope", "container"}, labels...)
		e.add("container_memory_failures_total", "counter", "Cumulative count of memory allocation failures.", number(m.PageFaults), at, append([]string{"failure_type", "pgfault"}, scope...)...)
		e.add("container_memory_failures_total", "counter", "Cumulative count of memory allocation failures.", number(m.MajorPageFaults), at, append([]string{"failure_type", "pgmajfault"}, scope...)...)
	}
	if sw != nil {
		e.add("container_memory_swap", "gauge", "Container swap usage in bytes.", number(sw.SwapUsageBytes), sw.Time.Time, labels...)
	}
}

// cadvisorPressure tells how long some tasks waited for a resource, and how long all
// that had something to do stood still; nothing where the kernel does not count it.
func cadvisorPressure(e *exposition, c *stats.CPUStats, m *stats.MemoryStats, io *stats.IOStats, labels []string) {
	add := func(resource, title string, p *stats.PSIStats, at time.Time) {
		if p == nil {
			return
		}
		e.add("container_pressure_"+resource+"_waiting_seconds_total", "counter", "Total time for which tasks in the container have waited because of "+title+" congestion.", seconds(&p.Some.Total), at, labels...)
		e.add("container_pressure_"+resource+"_stalled_seconds_total", "counter", "Total time for which no task in the container could go on because of "+title+" congestion.", seconds(&p.Full.Total), at, labels...)
	}
	if c != nil {
		add("cpu", "CPU", c.PSI, c.Time.Time)
	}
	if m != nil {
		add("memory", "memory", m.PSI, m.Time.Time)
	}
	if io != nil {
		add("io", "I/O", io.PSI, io.Time.Time)
	}
}

func cadvisorNetwork(e *exposition, n *stats.NetworkStats, labels []string) {
	if n == nil {
		return
	}
	for _, i := range n.Interfaces {
		l := append([]string{"interface", i.Name}, labels...)
		e.add("container_network_receive_bytes_total", "counter", "Cumulative count of bytes received", number(i.RxBytes), n.Time.Time, l...)
		e.add("container_network_receive_errors_total", "counter", "Cumulative count of errors encountered while receiving", number(i.RxErrors), n.Time.Time, l...)
		e.add("container_network_transmit_bytes_total", "counter", "Cumulative count of bytes transmitted", number(i.TxBytes), n.Time.Time, l...)
		e.add("container_network_transmit_errors_total", "counter", "Cumulative count of errors encountered while transmitting", number(i.TxErrors), n.Time.Time, l...)
	}
}

// cadvisorSpec tells the container's limits and start.
func cadvisorSpec(e *exposition, pod *corev1.Pod, c *stats.ContainerStats, labels []string) {
	add := func(name, help string, v float64) {
		e.add(name, "gauge", help, &v, time.Time{}, labels...)
	}
	if !c.StartTime.IsZero() {
		add("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", float64(c.StartTime.Unix()))
	}
	spec := podspec.Find(pod, c.Name)
	if spec == nil {
		return
	}
	r := podspec.LinuxResources(pod, spec, 0)
	add("container_spec_memory_limit_bytes", "Memory limit for the container.", float64(r.MemoryLimitInBytes))
	add("container_spec_cpu_shares", "CPU share of the container.", float64(r.CpuShares))
	add("container_spec_cpu_period", "CPU period of the container.", float64(r.CpuPeriod))
	if r.CpuQuota > 0 {
		add("container_spec_cpu_quota", "CPU quota of the container.", float64(r.CpuQuota))
	}
}

// shown is the image and the runtime's ID of a container in a pod's status.
func shown(pod *corev1.Pod, container string) (image, id string) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				_, id, _ = strings.Cut(list[i].ContainerID, "://")
				return list[i].Image, id
			}
		}
	}
	return "", ""
}
