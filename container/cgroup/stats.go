package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Stats are what a group has used. Fields that the host cannot tell are 0.
type Stats struct {
	CPU             time.Duration // since the group was made
	Memory          uint64        // bytes, with page cache
	WorkingSet      uint64        // bytes, without inactive file pages
	RSS             uint64        // bytes, anonymous
	MemoryLimit     uint64        // bytes, 0 for none
	PageFaults      uint64
	MajorPageFaults uint64
	Swap            uint64 // bytes
	PIDs            uint64 // tasks

	User, System       time.Duration // parts of CPU
	Periods, Throttled uint64        // of the CPU quota: all that passed, and those in which it was used up
	ThrottledTime      time.Duration
	Cache, Mapped      uint64 // bytes
	Peak               uint64 // the most that Memory was
	Refused            uint64 // how often the memory limit was hit
	MaxPIDs            uint64 // 0 for none
}

// Stats reads the group's usage. What cannot be read is left at 0: a group may
// vanish at any moment.
func (g Group) Stats() Stats {
	var s Stats
	if d := g.v2(); d != "" {
		st := keyed(d, "cpu.stat")
		s.CPU, s.User, s.System = micros(st["usage_usec"]), micros(st["user_usec"]), micros(st["system_usec"])
		s.Periods, s.Throttled, s.ThrottledTime = st["nr_periods"], st["nr_throttled"], micros(st["throttled_usec"])
		s.PIDs, s.MaxPIDs = number(d, "pids.current"), number(d, "pids.max")
	}
	if d := g.v1("cpuacct"); d != "" && g.v2() == "" {
		s.CPU = time.Duration(number(d, "cpuacct.usage"))
		s.User, s.System = time.Duration(number(d, "cpuacct.usage_user")), time.Duration(number(d, "cpuacct.usage_sys"))
	}
	if d := g.v1("pids"); d != "" {
		s.PIDs, s.MaxPIDs = number(d, "pids.current"), number(d, "pids.max")
	}
	if d := g.v1("cpu"); d != "" {
		st := keyed(d, "cpu.stat")
		s.Periods, s.Throttled, s.ThrottledTime = st["nr_periods"], st["nr_throttled"], time.Duration(st["throttled_time"])
	}
	inactive := uint64(0)
	if d := g.v1("memory"); d != "" {
		st := keyed(d, "memory.stat")
		s.Memory = number(d, "memory.usage_in_bytes")
		s.RSS, inactive = st["total_rss"], st["total_inactive_file"]
		s.PageFaults, s.MajorPageFaults = st["total_pgfault"], st["total_pgmajfault"]
		s.Swap = st["total_swap"]
		s.MemoryLimit = number(d, "memory.limit_in_bytes")
		s.Cache, s.Mapped = st["total_cache"], st["total_mapped_file"]
		s.Peak, s.Refused = number(d, "memory.max_usage_in_bytes"), number(d, "memory.failcnt")
	} else if d := g.v2(); d != "" {
		st := keyed(d, "memory.stat")
		s.Memory = number(d, "memory.current")
		s.RSS, inactive = st["anon"], st["inactive_file"]
		s.PageFaults, s.MajorPageFaults = st["pgfault"], st["pgmajfault"]
		s.Swap = number(d, "memory.swap.current")
		s.MemoryLimit = number(d, "memory.max")
		s.Cache, s.Mapped = st["file"], st["file_mapped"]
		s.Peak, s.Refused = number(d, "memory.peak"), keyed(d, "memory.events")["max"]
	}
	s.WorkingSet = s.Memory - min(inactive, s.Memory)
	if s.MemoryLimit > 1<<60 { // v1's way to say none
		s.MemoryLimit = 0
	}
	return s
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

// OOMKills counts the processes of the group that the kernel killed for memory.
func (g Group) OOMKills() uint64 {
	if d := g.v1("memory"); d != "" {
		return keyed(d, "memory.oom_control")["oom_kill"]
	}
	if d := g.v2(); d != "" {
		return keyed(d, "memory.events")["oom_kill"]
	}
	return 0
}

// Mounts says which host folders to show a container as its /sys/fs/cgroup:
// pairs of folder and mount point. On a hybrid host they are the v1 hierarchies,
// which have the limits: programs take the sight of a cgroup2 mount for proof that
// the limits are there.
func (g Group) Mounts() [][2]string {
	if len(g.layout.V1) == 0 {
		return [][2]string{{g.v2(), "/sys/fs/cgroup"}}
	}
	var m [][2]string
	for _, c := range used {
		if d := g.v1(c); d != "" {
			m = append(m, [2]string{d, "/sys/fs/cgroup/" + c})
		}
	}
	return m
}

func number(dir, name string) uint64 {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keyed reads a file of lines "key value".
func keyed(dir, name string) map[string]uint64 {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			m[key] = n
		}
	}
	return m
}
