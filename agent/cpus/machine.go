// Package cpus gives containers CPUs of their own, as a kubelet's CPU manager with
// the static policy does: https://kubernetes.io/docs/tasks/administer-cluster/cpu-management-policies.
//
// Containers of guaranteed pods that ask for whole CPUs have them for themselves; all
// others share what is left. Which CPUs are taken is planned by pure functions
// (plan.go); Manager keeps the outcome in a file.
package cpus

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/utils/cpuset"
)

// Place is where a CPU is. Numbers of cores and caches are unique in the machine.
type Place struct{ Socket, Node, Cache, Core int }

// Machine is the CPUs of a machine.
type Machine map[int]Place

// All is the set of the machine's CPUs.
func (m Machine) All() cpuset.CPUSet { return m.where(func(Place) bool { return true }) }

func (m Machine) where(ok func(Place) bool) cpuset.CPUSet {
	var out []int
	for cpu, p := range m {
		if ok(p) {
			out = append(out, cpu)
		}
	}
	return cpuset.New(out...)
}

// PerCore is how many CPUs a core has.
func (m Machine) PerCore() int {
	cores := map[int]bool{}
	for _, p := range m {
		cores[p.Core] = true
	}
	return len(m) / max(len(cores), 1)
}

// ReadMachine reads what /sys says of the CPUs that are online; sys is where that is
// mounted.
func ReadMachine(sys string) (Machine, error) {
	online, err := list(filepath.Join(sys, "devices/system/cpu/online"))
	if err != nil {
		return nil, fmt.Errorf("read which CPUs are online: %w", err)
	}
	nodes := map[int]int{}
	dirs, err := filepath.Glob(filepath.Join(sys, "devices/system/node/node[0-9]*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "node"))
		if err != nil {
			continue
		}
		set, err := list(filepath.Join(dir, "cpulist"))
		if err != nil {
			return nil, fmt.Errorf("read the CPUs of NUMA node %d: %w", n, err)
		}
		for _, cpu := range set.List() {
			nodes[cpu] = n
		}
	}
	m := Machine{}
	for _, cpu := range online.List() {
		dir := filepath.Join(sys, "devices/system/cpu", "cpu"+strconv.Itoa(cpu))
		socket, err := number(filepath.Join(dir, "topology/physical_package_id"))
		if err != nil {
			return nil, fmt.Errorf("read the socket of CPU %d: %w", cpu, err)
		}
		p := Place{Socket: max(socket, 0), Node: nodes[cpu], Core: cpu}
		// The first of those who share a core, or a cache, stands for it.
		if set, err := list(filepath.Join(dir, "topology/core_cpus_list")); err == nil && set.Size() > 0 {
			p.Core = set.List()[0]
		} else if set, err := list(filepath.Join(dir, "topology/thread_siblings_list")); err == nil && set.Size() > 0 {
			p.Core = set.List()[0]
		}
		p.Cache = p.Socket
		if set, err := list(filepath.Join(dir, "cache/index3/shared_cpu_list")); err == nil && set.Size() > 0 {
			p.Cache = set.List()[0]
		}
		m[cpu] = p
	}
	return m, nil
}

func list(path string) (cpuset.CPUSet, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return cpuset.CPUSet{}, err
	}
	return cpuset.Parse(strings.TrimSpace(string(b)))
}

func number(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
