package node

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Machine reads what the machine has: CPUs, memory, huge pages and the size of
// the file system at root, and what identifies it.
func Machine(root string) (corev1.ResourceList, corev1.NodeSystemInfo, error) {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
	}
	info := corev1.NodeSystemInfo{
		MachineID: line("/etc/machine-id"), SystemUUID: line("/sys/class/dmi/id/product_uuid"), BootID: line("/proc/sys/kernel/random/boot_id"),
		KernelVersion: line("/proc/sys/kernel/osrelease"), OSImage: osImage(), OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	mem, err := meminfo("/proc/meminfo")
	if err != nil {
		return nil, info, err
	}
	capacity[corev1.ResourceMemory] = *resource.NewQuantity(mem["MemTotal"], resource.BinarySI)
	for name, bytes := range hugePages("/sys/kernel/mm/hugepages") {
		capacity[name] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	if swap := mem["SwapTotal"]; swap > 0 {
		info.Swap = &corev1.NodeSwapStatus{Capacity: &swap}
	}
	total, _, err := Disk(root)
	if err != nil {
		return nil, info, err
	}
	capacity[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(total, resource.BinarySI)
	return capacity, info, nil
}

// hugePages reads how many bytes of huge pages of each size there are.
func hugePages(dir string) map[corev1.ResourceName]int64 {
	out := map[corev1.ResourceName]int64{}
	sizes, err := os.ReadDir(dir)
	if err != nil {
		return out // a kernel without them
	}
	for _, s := range sizes {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(s.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		n, _ := strconv.ParseInt(line(filepath.Join(dir, s.Name(), "nr_hugepages")), 10, 64)
		name := corev1.ResourceHugePagesPrefix + resource.NewQuantity(kib<<10, resource.BinarySI).String()
		out[corev1.ResourceName(name)] = n * kib << 10
	}
	return out
}

// UnifiedMemory tells whether memory is limited by the second version of control
// groups; root is where they are mounted.
func UnifiedMemory(root string) bool {
	return slices.Contains(strings.Fields(line(filepath.Join(root, "cgroup.controllers"))), "memory")
}

// Disk returns the bytes of the file system that holds path, or of that of its
// nearest existing parent: all of them and those available.
func Disk(path string) (total, free int64, err error) {
	for {
		var st unix.Statfs_t
		if err = unix.Statfs(path, &st); err == nil {
			return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
		}
		i := strings.LastIndexByte(path, '/')
		if i <= 0 {
			return 0, 0, fmt.Errorf("read the size of the file system at %s: %w", path, err)
		}
		path = path[:i]
	}
}

// meminfo reads sizes in bytes and counts from a meminfo file.
func meminfo(path string) (map[string]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]int64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			continue
		}
		if len(fields) > 1 && fields[1] == "kB" {
			n *= 1024
		}
		out[name] = n
	}
	return out, nil
}

func line(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func osImage() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return runtime.GOOS
}
