package cmd

import (
	"fmt"
	"strconv"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent"
	"knarr.dev/knarr/agent/cpus"
	numa "knarr.dev/knarr/agent/memory"
	"knarr.dev/knarr/agent/topology"
)

// ExclusiveConfig says which containers have CPUs and memory of their own, under the
// names of a KubeletConfiguration.
type ExclusiveConfig struct {
	// CPUPolicy is none or static; CPUOptions are those of the static policy, each
	// true or false.
	CPUPolicy  string            `json:"cpuManagerPolicy,omitempty"`
	CPUOptions map[string]string `json:"cpuManagerPolicyOptions,omitempty"`
	// ReservedCPUs, such as 0,8-9, are never a container's alone.
	ReservedCPUs string `json:"reservedSystemCPUs,omitempty"`
	// MemoryPolicy is None or Static; ReservedMemory is what the system has of each
	// NUMA node.
	MemoryPolicy   string               `json:"memoryManagerPolicy,omitempty"`
	ReservedMemory []ReservedNodeMemory `json:"reservedMemory,omitempty"`
	// TopologyPolicy is none, best-effort, restricted or single-numa-node; TopologyScope
	// container or pod.
	TopologyPolicy  string            `json:"topologyManagerPolicy,omitempty"`
	TopologyScope   string            `json:"topologyManagerScope,omitempty"`
	TopologyOptions map[string]string `json:"topologyManagerPolicyOptions,omitempty"`
}

// ReservedNodeMemory is what the system has of one NUMA node: of memory, and of
// hugepages-SIZE.
type ReservedNodeMemory struct {
	Node   int               `json:"numaNode"`
	Limits map[string]string `json:"limits"`
}

// exclusiveFlags adds the kubelet's flags of the same meaning.
func exclusiveFlags(f *pflag.FlagSet) func(*Config) {
	cpuPolicy := f.String("cpu-manager-policy", "none", "static: containers of guaranteed pods that ask for whole CPUs have them alone")
	reserved := f.String("reserved-cpus", "", "CPUs, such as 0,8-9, that no container has alone")
	memoryPolicy := f.String("memory-manager-policy", "None", "Static: containers of guaranteed pods are tied to the NUMA nodes of their memory")
	policy := f.String("topology-manager-policy", "none", "none, best-effort, restricted or single-numa-node")
	scope := f.String("topology-manager-scope", "container", "container or pod")
	return func(cfg *Config) {
		e := &cfg.Node.ExclusiveConfig
		for name, to := range map[string]*string{"cpu-manager-policy": &e.CPUPolicy, "reserved-cpus": &e.ReservedCPUs, "memory-manager-policy": &e.MemoryPolicy,
			"topology-manager-policy": &e.TopologyPolicy, "topology-manager-scope": &e.TopologyScope} {
			if f.Changed(name) {
				*to = map[string]string{"cpu-manager-policy": *cpuPolicy, "reserved-cpus": *reserved, "memory-manager-policy": *memoryPolicy,
					"topology-manager-policy": *policy, "topology-manager-scope": *scope}[name]
			}
		}
	}
}

// config checks the settings and turns them into the agent's.
func (e *ExclusiveConfig) config() (out agent.Exclusive, err error) {
	out = agent.Exclusive{CPUPolicy: e.CPUPolicy, MemoryPolicy: e.MemoryPolicy,
		Topology: topology.Config{Policy: e.TopologyPolicy, Scope: e.TopologyScope, Options: e.TopologyOptions}}
	if out.ReservedCPUs, err = cpuset.Parse(e.ReservedCPUs); err != nil {
		return out, fmt.Errorf("reservedSystemCPUs: %w", err)
	}
	if e.CPUPolicy != "" && e.CPUPolicy != "none" && e.CPUPolicy != cpus.Static {
		return out, fmt.Errorf("cpuManagerPolicy %q: want none or static", e.CPUPolicy)
	}
	if e.CPUPolicy == cpus.Static && out.ReservedCPUs.IsEmpty() {
		return out, fmt.Errorf("cpuManagerPolicy static needs reservedSystemCPUs: at least one CPU for the system")
	}
	o := &out.CPUOptions
	for name, v := range e.CPUOptions {
		to := map[string]*bool{"full-pcpus-only": &o.FullCores, "distribute-cpus-across-numa": &o.SpreadNodes, "distribute-cpus-across-cores": &o.SpreadCores,
			"align-by-socket": &o.AlignSocket, "strict-cpu-reservation": &o.StrictReservation, "prefer-align-cpus-by-uncorecache": &o.AlignCache}[name]
		if to == nil {
			return out, fmt.Errorf("cpuManagerPolicyOptions: unknown option %q", name)
		}
		if *to, err = strconv.ParseBool(v); err != nil {
			return out, fmt.Errorf("cpuManagerPolicyOptions: %s: %q is neither true nor false", name, v)
		}
	}
	if o.FullCores && o.SpreadCores {
		return out, fmt.Errorf("cpuManagerPolicyOptions: full-pcpus-only and distribute-cpus-across-cores exclude each other")
	}
	if o.AlignSocket && e.TopologyPolicy == topology.SingleNUMANode {
		return out, fmt.Errorf("cpuManagerPolicyOptions: align-by-socket and topologyManagerPolicy single-numa-node exclude each other")
	}
	if e.MemoryPolicy != "" && e.MemoryPolicy != "None" && e.MemoryPolicy != numa.Static {
		return out, fmt.Errorf("memoryManagerPolicy %q: want None or Static", e.MemoryPolicy)
	}
	if e.MemoryPolicy == numa.Static && len(e.ReservedMemory) == 0 {
		return out, fmt.Errorf("memoryManagerPolicy Static needs reservedMemory: what the system has of each NUMA node")
	}
	out.ReservedMemory = map[int]numa.Amounts{}
	for _, r := range e.ReservedMemory {
		if out.ReservedMemory[r.Node] != nil {
			return out, fmt.Errorf("reservedMemory: NUMA node %d is there twice", r.Node)
		}
		out.ReservedMemory[r.Node] = numa.Amounts{}
		for name, v := range r.Limits {
			q, err := resource.ParseQuantity(v)
			if err != nil || q.Value() < 0 {
				return out, fmt.Errorf("reservedMemory: NUMA node %d: %s: %q is no amount", r.Node, name, v)
			}
			out.ReservedMemory[r.Node][corev1.ResourceName(name)] = q.Value()
		}
	}
	return out, out.Topology.Validate()
}
