package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// invent writes what a machine tells of itself: its nodes, a socket each with 8 GiB,
// and their CPUs, a core each.
func invent(t *testing.T, nodes map[int][]int) string {
	t.Helper()
	sys := t.TempDir()
	write := func(text string, path ...any) {
		file := filepath.Join(sys, "devices/system", fmt.Sprintf(path[0].(string), path[1:]...))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var online []string
	for n, cpus := range nodes {
		var list []string
		for _, cpu := range cpus {
			list = append(list, fmt.Sprint(cpu))
			write(fmt.Sprint(n), "cpu/cpu%d/topology/physical_package_id", cpu)
			write(fmt.Sprint(cpu), "cpu/cpu%d/topology/core_cpus_list", cpu)
		}
		write(strings.Join(list, ","), "node/node%d/cpulist", n)
		write("Node 0 MemTotal: 8388608 kB", "node/node%d/meminfo", n)
		online = append(online, list...)
	}
	write(strings.Join(online, ","), "cpu/online")
	return sys
}
