package usage

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// node measures the machine. What cannot be read is left out.
func (m *Meter) node(now metav1.Time) stats.NodeStats {
	mem := meminfo()
	n := stats.NodeStats{NodeName: m.cfg.NodeName, StartTime: bootTime(), CPU: nodeCPU(now), Network: nodeNetwork(now), Rlimit: rlimit(now), Fs: Disk(m.cfg.Root, now)}
	if mem["MemTotal"] > 0 {
		available, usage, working, rss := mem["MemAvailable"], mem["MemTotal"]-mem["MemFree"], mem["MemTotal"]-mem["MemAvailable"], mem["AnonPages"]
		n.Memory = &stats.MemoryStats{Time: now, AvailableBytes: &available, UsageBytes: &usage, WorkingSetBytes: &working, RSSBytes: &rss}
		left, used := mem["SwapFree"], mem["SwapTotal"]-mem["SwapFree"]
		n.Swap = &stats.SwapStats{Time: now, SwapAvailableBytes: &left, SwapUsageBytes: &used}
	}
	nodePressure(&n, machinePressure, now)
	return n
}

// systemContainers are all pods together, and the kubelet and the runtime, which
// are this process.
func (r *Reading) systemContainers() []stats.ContainerStats {
	now := r.Node.Memory
	pods := stats.ContainerStats{Name: stats.SystemContainerPods, StartTime: r.Node.StartTime}
	for i := range r.Pods {
		pods.CPU, pods.Memory = addCPU(pods.CPU, r.Pods[i].CPU), addMemory(pods.Memory, r.Pods[i].Memory)
	}
	out := []stats.ContainerStats{pods}
	if own := process(now); own.CPU != nil {
		own.Name = stats.SystemContainerKubelet
		out = append(out, own)
	}
	for i := range out {
		r.note("system/"+out[i].Name, out[i].CPU)
	}
	return out
}

// process measures this one.
func process(now *stats.MemoryStats) stats.ContainerStats {
	var u unix.Rusage
	b, err := os.ReadFile("/proc/self/statm")
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil || err != nil || now == nil {
		return stats.ContainerStats{}
	}
	ns := uint64(u.Utime.Nano() + u.Stime.Nano())
	var pages, resident uint64
	if f := strings.Fields(string(b)); len(f) > 1 {
		pages, _ = strconv.ParseUint(f[1], 10, 64)
		resident = pages * uint64(os.Getpagesize())
	}
	return stats.ContainerStats{CPU: &stats.CPUStats{Time: now.Time, UsageCoreNanoSeconds: &ns}, Memory: &stats.MemoryStats{Time: now.Time, UsageBytes: &resident, WorkingSetBytes: &resident, RSSBytes: &resident}}
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

func meminfo() map[string]uint64 {
	m := map[string]uint64{}
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) >= 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				m[strings.TrimSuffix(f[0], ":")] = n << 10
			}
		}
	}
	return m
}

// Memory is what the machine has available and in all, in bytes.
func Memory() (available, total uint64, ok bool) {
	m := meminfo()
	return m["MemAvailable"], m["MemTotal"], m["MemTotal"] > 0
}

// Tasks counts the machine's tasks, and says how many there may be.
func Tasks() (used, limit uint64, ok bool) {
	r := rlimit(metav1.Time{})
	if r == nil || r.NumOfRunningProcesses == nil {
		return 0, 0, false
	}
	return uint64(*r.NumOfRunningProcesses), uint64(*r.MaxPID), true
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

// Disk measures the file system that holds path, or its nearest parent that is
// there; nil if it cannot be read.
func Disk(path string, now metav1.Time) *stats.FsStats {
	var st unix.Statfs_t
	for unix.Statfs(path, &st) != nil {
		parent := filepath.Dir(path)
		if parent == path {
			return nil
		}
		path = parent
	}
	size := uint64(st.Bsize)
	available, capacity, used := st.Bavail*size, st.Blocks*size, (st.Blocks-st.Bfree)*size
	inodes, free := st.Files, st.Ffree
	taken := inodes - free
	return &stats.FsStats{Time: now, AvailableBytes: &available, CapacityBytes: &capacity, UsedBytes: &used, Inodes: &inodes, InodesFree: &free, InodesUsed: &taken}
}

// SameDisk tells whether two paths lie on one file system; what is not there yet
// counts as its nearest parent.
func SameDisk(a, b string) bool {
	device := func(path string) uint64 {
		var st unix.Stat_t
		for unix.Stat(path, &st) != nil && path != filepath.Dir(path) {
			path = filepath.Dir(path)
		}
		return st.Dev
	}
	return device(a) == device(b)
}

// rlimit counts the machine's tasks against how many there may be.
func rlimit(now metav1.Time) *stats.RlimitStats {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return nil
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return nil
	}
	out := &stats.RlimitStats{Time: now, MaxPID: &limit}
	// load1 load5 load15 running/tasks last
	if b, err = os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 3 {
			if _, tasks, ok := strings.Cut(f[3], "/"); ok {
				if n, err := strconv.ParseInt(tasks, 10, 64); err == nil {
					out.NumOfRunningProcesses = &n
				}
			}
		}
	}
	return out
}

// nodeNetwork counts the node's interfaces; the one with the default route stands
// for the node.
func nodeNetwork(now metav1.Time) *stats.NetworkStats {
	f, err := os.Open("/proc/net/dev")
	if err != nil {
		return nil
	}
	defer f.Close()
	out := &stats.NetworkStats{Time: now}
	primary := defaultInterface()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		c := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(c) < 11 {
			continue
		}
		number := func(i int) *uint64 {
			n, err := strconv.ParseUint(c[i], 10, 64)
			if err != nil {
				return nil
			}
			return &n
		}
		i := stats.InterfaceStats{Name: name, RxBytes: number(0), RxErrors: number(2), TxBytes: number(8), TxErrors: number(10)}
		out.Interfaces = append(out.Interfaces, i)
		if name == primary {
			out.InterfaceStats = i
		}
	}
	return out
}

func defaultInterface() string {
	b, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 2 && f[1] == "00000000" {
			return f[0]
		}
	}
	return ""
}
