package usage

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.Value
	return &n
}

func at(ns int64) metav1.Time { return metav1.NewTime(time.Unix(0, ns)) }

func cpu(c *runtimeapi.CpuUsage) *stats.CPUStats {
	if c == nil {
		return nil
	}
	return &stats.CPUStats{Time: at(c.Timestamp), UsageNanoCores: value(c.UsageNanoCores), UsageCoreNanoSeconds: value(c.UsageCoreNanoSeconds), PSI: psi(c.Psi)}
}

func memory(m *runtimeapi.MemoryUsage) *stats.MemoryStats {
	if m == nil {
		return nil
	}
	return &stats.MemoryStats{Time: at(m.Timestamp), AvailableBytes: value(m.AvailableBytes), UsageBytes: value(m.UsageBytes),
		WorkingSetBytes: value(m.WorkingSetBytes), RSSBytes: value(m.RssBytes), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), PSI: psi(m.Psi)}
}

func swap(s *runtimeapi.SwapUsage) *stats.SwapStats {
	if s == nil {
		return nil
	}
	return &stats.SwapStats{Time: at(s.Timestamp), SwapAvailableBytes: value(s.SwapAvailableBytes), SwapUsageBytes: value(s.SwapUsageBytes)}
}

func network(n *runtimeapi.NetworkUsage) *stats.NetworkStats {
	if n == nil || n.DefaultInterface == nil {
		return nil
	}
	one := func(i *runtimeapi.NetworkInterfaceUsage) stats.InterfaceStats {
		return stats.InterfaceStats{Name: i.Name, RxBytes: value(i.RxBytes), RxErrors: value(i.RxErrors), TxBytes: value(i.TxBytes), TxErrors: value(i.TxErrors)}
	}
	out := &stats.NetworkStats{Time: at(n.Timestamp), InterfaceStats: one(n.DefaultInterface)}
	out.Interfaces = append(out.Interfaces, out.InterfaceStats)
	for _, i := range n.Interfaces {
		if i.Name != out.Name {
			out.Interfaces = append(out.Interfaces, one(i))
		}
	}
	return out
}

// sum adds what is known.
func sum(a, b *uint64) *uint64 {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	n := *a + *b
	return &n
}

// addCPU is the use of both. Pressure, here and below, does not add up.
func addCPU(a, b *stats.CPUStats) *stats.CPUStats {
	switch {
	case b == nil:
		return a
	case a == nil:
		sum := *b
		sum.PSI = nil
		return &sum
	}
	return &stats.CPUStats{Time: b.Time, UsageCoreNanoSeconds: sum(a.UsageCoreNanoSeconds, b.UsageCoreNanoSeconds)}
}

func addMemory(a, b *stats.MemoryStats) *stats.MemoryStats {
	switch {
	case b == nil:
		return a
	case a == nil:
		sum := *b
		sum.PSI = nil
		return &sum
	}
	return &stats.MemoryStats{Time: b.Time, UsageBytes: sum(a.UsageBytes, b.UsageBytes), WorkingSetBytes: sum(a.WorkingSetBytes, b.WorkingSetBytes),
		RSSBytes: sum(a.RSSBytes, b.RSSBytes), PageFaults: sum(a.PageFaults, b.PageFaults), MajorPageFaults: sum(a.MajorPageFaults, b.MajorPageFaults)}
}

func addSwap(a, b *stats.SwapStats) *stats.SwapStats {
	switch {
	case b == nil:
		return a
	case a == nil:
		sum := *b
		return &sum
	}
	return &stats.SwapStats{Time: b.Time, SwapUsageBytes: sum(a.SwapUsageBytes, b.SwapUsageBytes)}
}
