package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// optional are the v1 controllers joined only by groups that limit them.
var optional = [...]string{"cpuset", "devices"}

// Limits of a group. Zero values leave things as they are.
type Limits struct {
	CPUShares         uint64 // v1's scale, 2 to 262144; turned into weights on v2
	CPUQuota          int64  // microseconds per period, -1 for none
	CPUPeriod         uint64 // microseconds
	CPUs, MemoryNodes string // lists as in "0-3,7"
	Memory            int64  // bytes, -1 for none
	MemoryAndSwap     int64  // bytes of both together, -1 for none
	MemoryReservation int64  // bytes
	PIDs              int64  // -1 for none
	HugePages         map[string]uint64
	Unified           map[string]string // v2 files, as they are
}

// file is one setting: the file's name and what to write.
type file struct{ name, value string }

// Apply sets the limits. Those for which the kernel has no controller are an
// error, except huge pages, which are best effort.
func (g Group) Apply(l Limits) error {
	for controller, files := range l.v1() {
		if len(files) == 0 {
			continue
		}
		dir := g.v1(controller)
		if dir == "" {
			continue
		}
		if controller == "cpuset" {
			if err := g.joinCpuset(dir); err != nil {
				return err
			}
		}
		if err := writeAll(dir, files); err != nil {
			return err
		}
	}
	if g.v2() == "" {
		return nil
	}
	return g.applyV2(l)
}

// samePIDs is the one file that is the same in both versions.
const samePIDs = "pids.max"

// v1 lists the files by controller, in the order in which they must be written.
func (l Limits) v1() map[string][]file {
	set := map[string][]file{}
	add := func(controller, name string, value int64) {
		set[controller] = append(set[controller], file{name, strconv.FormatInt(value, 10)})
	}
	if l.CPUShares != 0 {
		add("cpu", "cpu.shares", int64(l.CPUShares))
	}
	if l.CPUPeriod != 0 {
		add("cpu", "cpu.cfs_period_us", int64(l.CPUPeriod))
	}
	if l.CPUQuota != 0 {
		add("cpu", "cpu.cfs_quota_us", l.CPUQuota)
	}
	if l.CPUs != "" {
		set["cpuset"] = append(set["cpuset"], file{"cpuset.cpus", l.CPUs})
	}
	if l.MemoryNodes != "" {
		set["cpuset"] = append(set["cpuset"], file{"cpuset.mems", l.MemoryNodes})
	}
	if l.MemoryReservation != 0 {
		add("memory", "memory.soft_limit_in_bytes", l.MemoryReservation)
	}
	if l.Memory != 0 {
		add("memory", "memory.limit_in_bytes", l.Memory)
	}
	if l.MemoryAndSwap != 0 {
		add("memory", "memory.memsw.limit_in_bytes", l.MemoryAndSwap)
	}
	if l.PIDs != 0 {
		set["pids"] = append(set["pids"], file{"pids.max", orMax(l.PIDs)})
	}
	if most, ok := l.Unified[samePIDs]; ok {
		set["pids"] = append(set["pids"], file{samePIDs, most})
	}
	return set
}

// V2 lists the files of the unified hierarchy for these limits, by controller
// being the name's first part. It is a pure function.
func (l Limits) v2() []file {
	var files []file
	if l.CPUShares != 0 {
		files = append(files, file{"cpu.weight", strconv.FormatUint(Weight(l.CPUShares), 10)})
	}
	if l.CPUQuota != 0 || l.CPUPeriod != 0 {
		period := l.CPUPeriod
		if period == 0 {
			period = 100000
		}
		quota := "max"
		if l.CPUQuota > 0 {
			quota = strconv.FormatInt(l.CPUQuota, 10)
		}
		files = append(files, file{"cpu.max", quota + " " + strconv.FormatUint(period, 10)})
	}
	if l.CPUs != "" {
		files = append(files, file{"cpuset.cpus", l.CPUs})
	}
	if l.MemoryNodes != "" {
		files = append(files, file{"cpuset.mems", l.MemoryNodes})
	}
	if l.MemoryReservation != 0 {
		files = append(files, file{"memory.low", orMax(l.MemoryReservation)})
	}
	if l.MemoryAndSwap != 0 {
		swap := l.MemoryAndSwap
		if swap > 0 && l.Memory > 0 {
			swap -= l.Memory // v2 counts swap by itself
		}
		files = append(files, file{"memory.swap.max", orMax(swap)})
	}
	if l.Memory != 0 {
		files = append(files, file{"memory.max", orMax(l.Memory)})
	}
	if l.PIDs != 0 {
		files = append(files, file{"pids.max", orMax(l.PIDs)})
	}
	sizes := make([]string, 0, len(l.HugePages))
	for s := range l.HugePages {
		sizes = append(sizes, s)
	}
	sort.Strings(sizes)
	for _, s := range sizes {
		files = append(files, file{"hugetlb." + s + ".max", strconv.FormatUint(l.HugePages[s], 10)})
	}
	names := make([]string, 0, len(l.Unified))
	for n := range l.Unified {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		files = append(files, file{n, l.Unified[n]})
	}
	return files
}

func (g Group) applyV2(l Limits) error {
	for _, f := range l.v2() {
		if filepath.Base(f.name) != f.name {
			return fmt.Errorf("%q is not the name of a control group file", f.name)
		}
		controller, _, _ := strings.Cut(f.name, ".")
		_, asked := l.Unified[f.name]
		if g.v1(controller) != "" {
			if asked && f.name != samePIDs {
				return fmt.Errorf("setting %s: the controller %s is managed by cgroup v1 on this host", f.name, controller)
			}
			continue
		}
		err := os.WriteFile(filepath.Join(g.v2(), f.name), []byte(f.value), 0)
		if err != nil && (controller == "hugetlb" || f.name == "memory.swap.max" && errors.Is(err, os.ErrNotExist)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("setting %s of %s to %q: %w", f.name, g.path, f.value, err)
		}
	}
	return nil
}

// writeAll writes the files, a second time in reverse where the first fails:
// memory's two limits must be raised in one order and lowered in the other.
func writeAll(dir string, files []file) error {
	var failed []file
	for _, f := range files {
		err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.value), 0)
		if errors.Is(err, os.ErrNotExist) && f.name == "memory.memsw.limit_in_bytes" {
			continue // no swap accounting in this kernel
		}
		if err != nil {
			failed = append(failed, f)
		}
	}
	for _, f := range failed {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.value), 0); err != nil {
			return fmt.Errorf("setting %s in %s to %q: %w", f.name, dir, f.value, err)
		}
	}
	return nil
}

// joinCpuset makes the group in v1's cpuset hierarchy, where every level must
// have CPUs and nodes before anything may enter, and moves its processes there.
func (g Group) joinCpuset(dir string) error {
	root := g.layout.V1["cpuset"]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making control group %s: %w", dir, err)
	}
	at := root
	for _, part := range strings.Split(g.path[1:], "/") {
		parent := at
		at = filepath.Join(at, part)
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(at, name))
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(own)) != "" {
				continue
			}
			inherited, err := os.ReadFile(filepath.Join(parent, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(at, name), inherited, 0)
			}
			if err != nil {
				return fmt.Errorf("inheriting %s in %s: %w", name, at, err)
			}
		}
	}
	pids, err := g.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := join(dir, pid); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended meanwhile
			return err
		}
	}
	return nil
}

// Weight turns v1's CPU shares into v2's weight. The curve goes through the
// three points that matter: (2, 1), (1024, 100) and (262144, 10000).
func Weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	exponent := (l*l+125*l)/612.0 - 7.0/34.0
	return uint64(math.Ceil(math.Pow(10, exponent)))
}

func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}
