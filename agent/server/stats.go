package server

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"knarr.dev/knarr/agent/podspec"
)

// summary answers the statistics of the node and its pods.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	out, err := s.collect(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, out)
}

func (s *Server) collect(ctx context.Context) (*stats.Summary, error) {
	resp, err := s.cfg.CRI.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("read the runtime's statistics: %w", err)
	}
	now := metav1.NewTime(s.cfg.Clock.Now())
	out := &stats.Summary{Node: stats.NodeStats{NodeName: s.cfg.NodeName, CPU: nodeCPU(now), Memory: nodeMemory(now), StartTime: bootTime()}}
	pods := map[string]int{}
	for _, p := range s.cfg.Pods() {
		ps := stats.PodStats{PodRef: stats.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}, Containers: []stats.ContainerStats{}}
		if p.Status.StartTime != nil {
			ps.StartTime = *p.Status.StartTime
		}
		pods[string(p.UID)] = len(out.Pods)
		out.Pods = append(out.Pods, ps)
	}
	for _, c := range resp.Stats {
		l := c.GetAttributes().GetLabels()
		i, known := pods[l[podspec.LabelPodUID]]
		if !known {
			continue
		}
		p := &out.Pods[i]
		cs := stats.ContainerStats{Name: l[podspec.LabelContainer], StartTime: p.StartTime, CPU: cpu(c.Cpu), Memory: memory(c.Memory)}
		if fs := c.WritableLayer; fs != nil {
			used := fs.UsedBytes.GetValue()
			cs.Rootfs = &stats.FsStats{Time: metav1.NewTime(time.Unix(0, fs.Timestamp)), UsedBytes: &used}
		}
		p.Containers = append(p.Containers, cs)
		p.CPU, p.Memory = addCPU(p.CPU, cs.CPU), addMemory(p.Memory, cs.Memory)
	}
	return out, nil
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.Value
	return &n
}

func cpu(c *runtimeapi.CpuUsage) *stats.CPUStats {
	if c == nil {
		return nil
	}
	return &stats.CPUStats{Time: metav1.NewTime(time.Unix(0, c.Timestamp)), UsageNanoCores: value(c.UsageNanoCores), UsageCoreNanoSeconds: value(c.UsageCoreNanoSeconds)}
}

func memory(m *runtimeapi.MemoryUsage) *stats.MemoryStats {
	if m == nil {
		return nil
	}
	return &stats.MemoryStats{Time: metav1.NewTime(time.Unix(0, m.Timestamp)), AvailableBytes: value(m.AvailableBytes), UsageBytes: value(m.UsageBytes),
		WorkingSetBytes: value(m.WorkingSetBytes), RSSBytes: value(m.RssBytes), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults)}
}

func sum(a, b *uint64) *uint64 {
	if a == nil || b == nil {
		if a != nil {
			return a
		}
		return b
	}
	n := *a + *b
	return &n
}

func addCPU(a, b *stats.CPUStats) *stats.CPUStats {
	if a == nil || b == nil {
		if a != nil {
			return a
		}
		return b
	}
	return &stats.CPUStats{Time: b.Time, UsageNanoCores: sum(a.UsageNanoCores, b.UsageNanoCores), UsageCoreNanoSeconds: sum(a.UsageCoreNanoSeconds, b.UsageCoreNanoSeconds)}
}

func addMemory(a, b *stats.MemoryStats) *stats.MemoryStats {
	if a == nil || b == nil {
		if a != nil {
			return a
		}
		return b
	}
	return &stats.MemoryStats{Time: b.Time, UsageBytes: sum(a.UsageBytes, b.UsageBytes), WorkingSetBytes: sum(a.WorkingSetBytes, b.WorkingSetBytes), RSSBytes: sum(a.RSSBytes, b.RSSBytes)}
}

// nodeCPU sums the busy time of all CPUs since boot.
func nodeCPU(now metav1.Time) *stats.CPUStats {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(b), "\n")
	var busy uint64
	for i, f := range strings.Fields(first) {
		// cpu user nice system idle iowait irq softirq steal ...; idle time is not
		// usage, and guest time is part of user time.
		if n, err := strconv.ParseUint(f, 10, 64); err == nil && i != 4 && i != 5 && i <= 8 {
			busy += n
		}
	}
	ns := busy * uint64(time.Second/100) // the kernel counts in hundredths
	return &stats.CPUStats{Time: now, UsageCoreNanoSeconds: &ns}
}

func nodeMemory(now metav1.Time) *stats.MemoryStats {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	m := map[string]uint64{}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) >= 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				m[strings.TrimSuffix(f[0], ":")] = n << 10
			}
		}
	}
	available, usage, working, rss := m["MemAvailable"], m["MemTotal"]-m["MemFree"], m["MemTotal"]-m["MemAvailable"], m["AnonPages"]
	return &stats.MemoryStats{Time: now, AvailableBytes: &available, UsageBytes: &usage, WorkingSetBytes: &working, RSSBytes: &rss}
}

func bootTime() metav1.Time {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return metav1.Time{}
	}
	for l := range strings.Lines(string(b)) {
		if t, ok := strings.CutPrefix(l, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(t), 10, 64); err == nil {
				return metav1.Unix(n, 0)
			}
		}
	}
	return metav1.Time{}
}
