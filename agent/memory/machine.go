package memory

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"knarr.dev/knarr/agent/topology"
)

// Machine is the memory of a machine's NUMA nodes.
type Machine struct {
	Nodes map[int]Amounts
	// distances between nodes, the second by its order.
	distances map[int][]int
	order     []int
}

// Mask is the set of the machine's nodes.
func (m *Machine) Mask() (out topology.Mask) {
	for n := range m.Nodes {
		out |= topology.Of(n)
	}
	return out
}

// Distance is how far two nodes are apart, 10 for a node and itself.
func (m *Machine) Distance(a, b int) int {
	for i, n := range m.order {
		if n == b && i < len(m.distances[a]) {
			return m.distances[a][i]
		}
	}
	return 10
}

// Without is what is left when the system has what is reserved for it.
func (m *Machine) Without(reserved map[int]Amounts) (map[int]Amounts, error) {
	out := map[int]Amounts{}
	for n, have := range m.Nodes {
		out[n] = Amounts{}
		for name, bytes := range have {
			out[n][name] = bytes
		}
	}
	for n, list := range reserved {
		for name, bytes := range list {
			if out[n] == nil || out[n][name] < bytes {
				return nil, fmt.Errorf("reservedMemory: NUMA node %d has no %d bytes of %s", n, bytes, name)
			}
			out[n][name] -= bytes
		}
	}
	return out, nil
}

// ReadMachine reads what /sys says of the NUMA nodes; sys is where that is mounted.
func ReadMachine(sys string) (*Machine, error) {
	m := &Machine{Nodes: map[int]Amounts{}, distances: map[int][]int{}}
	dirs, err := filepath.Glob(filepath.Join(sys, "devices/system/node/node[0-9]*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "node"))
		if err != nil || n > 63 {
			continue
		}
		total, err := memTotal(filepath.Join(dir, "meminfo"))
		if err != nil {
			return nil, fmt.Errorf("read the memory of NUMA node %d: %w", n, err)
		}
		a := Amounts{corev1.ResourceMemory: total}
		pages, err := filepath.Glob(filepath.Join(dir, "hugepages/hugepages-*kB"))
		if err != nil {
			return nil, err
		}
		for _, p := range pages {
			size, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(p), "hugepages-"), "kB"), 10, 64)
			if err != nil {
				continue
			}
			b, err := os.ReadFile(filepath.Join(p, "nr_hugepages"))
			if err != nil {
				return nil, fmt.Errorf("read the huge pages of NUMA node %d: %w", n, err)
			}
			count, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("read the huge pages of NUMA node %d: %w", n, err)
			}
			name := corev1.ResourceHugePagesPrefix + resource.NewQuantity(size<<10, resource.BinarySI).String()
			a[corev1.ResourceName(name)] = count * size << 10
			a[corev1.ResourceMemory] -= count * size << 10 // it is no ordinary memory any more
		}
		m.Nodes[n] = a
		if b, err := os.ReadFile(filepath.Join(dir, "distance")); err == nil {
			for _, f := range strings.Fields(string(b)) {
				d, err := strconv.Atoi(f)
				if err != nil {
					return nil, fmt.Errorf("read the distances of NUMA node %d: %w", n, err)
				}
				m.distances[n] = append(m.distances[n], d)
			}
		}
	}
	for n := range 64 {
		if m.Nodes[n] != nil {
			m.order = append(m.order, n)
		}
	}
	if len(m.order) == 0 {
		return nil, fmt.Errorf("%s tells of no NUMA node", sys)
	}
	return m, nil
}

func memTotal(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		// Node 0 MemTotal: 24683972 kB
		if f := strings.Fields(line); len(f) >= 4 && f[2] == "MemTotal:" {
			n, err := strconv.ParseInt(f[3], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no MemTotal", path)
}
