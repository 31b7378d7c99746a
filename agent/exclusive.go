package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent/cpus"
	"knarr.dev/knarr/agent/memory"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/resources"
	"knarr.dev/knarr/agent/topology"
)

// shareEvery is how often containers are looked at that share CPUs, beside each
// change of which those are.
const shareEvery = 10 * time.Second

// Exclusive says how CPUs and memory are given to containers alone. The zero value
// gives none.
type Exclusive struct {
	// CPUPolicy is none (or empty) or static.
	CPUPolicy    string
	CPUOptions   cpus.Options
	ReservedCPUs cpuset.CPUSet
	// MemoryPolicy is None (or empty) or Static; ReservedMemory is what the system has
	// of each NUMA node.
	MemoryPolicy   string
	ReservedMemory map[int]memory.Amounts
	Topology       topology.Config
	// Sys is where the machine tells of itself; empty: /sys.
	Sys string
}

// exclusive are the managers of what containers have alone.
type exclusive struct {
	cpus    *cpus.Manager   // nil: all share
	memory  *memory.Manager // nil: none is tied
	machine *memory.Machine // nil: nobody asks
	unequal chan struct{}   // the shared CPUs have changed
}

// openExclusive makes the managers that are wanted.
func (a *Agent) openExclusive() error {
	cfg := a.cfg.Exclusive
	a.unequal = make(chan struct{}, 1)
	sys := cfg.Sys
	if sys == "" {
		sys = "/sys"
	}
	var err error
	aligned := cfg.Topology.Policy != "" && cfg.Topology.Policy != topology.None
	if aligned || cfg.MemoryPolicy == memory.Static {
		if a.machine, err = memory.ReadMachine(sys); err != nil {
			return fmt.Errorf("the machine's memory: %w", err)
		}
	}
	if file := filepath.Join(a.cfg.Root, "cpus.json"); cfg.CPUPolicy == cpus.Static {
		machine, err := cpus.ReadMachine(sys)
		if err != nil {
			return fmt.Errorf("the machine's CPUs: %w", err)
		}
		a.cpus, err = cpus.New(cpus.Config{Machine: machine, Options: cfg.CPUOptions, Reserved: cfg.ReservedCPUs, File: file, Changed: func() {
			select {
			case a.unequal <- struct{}{}:
			default:
			}
		}})
		if err != nil {
			return err
		}
	} else if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget which containers had CPUs alone: %w", err)
	}
	if file := filepath.Join(a.cfg.Root, "memory.json"); cfg.MemoryPolicy == memory.Static {
		nodes, err := a.machine.Without(cfg.ReservedMemory)
		if err != nil {
			return err
		}
		if a.memory, err = memory.New(memory.Config{Nodes: nodes, File: file}); err != nil {
			return err
		}
	} else if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget which containers had memory of which nodes: %w", err)
	}
	return nil
}

// openResources has the managers of exclusive resources decide about pods.
func (a *Agent) openResources() {
	var holders []resources.Holder
	if a.cpus != nil {
		holders = append(holders, a.cpus)
	}
	if a.memory != nil {
		holders = append(holders, a.memory)
	}
	if a.devices != nil {
		holders = append(holders, a.devices)
		a.pods.managed = a.devices.Capacity
	}
	if len(holders) == 0 {
		return
	}
	nodes, distance := topology.Of(0), func(int, int) int { return 10 }
	if a.machine != nil {
		nodes, distance = a.machine.Mask(), a.machine.Distance
	}
	m := resources.New(a.cfg.Exclusive.Topology, nodes, distance, holders...)
	a.deps.Resources, a.pods.resources = m, m
	a.pods.pinned = func(uid string) string {
		switch {
		case a.cpus != nil && a.cpus.Pinned(uid):
			return "CPU Manager"
		case a.memory != nil && a.memory.Pinned(uid):
			return "Memory Manager"
		}
		return ""
	}
}

// reserved is what the node keeps back for the system.
func (a *Agent) reserved() corev1.ResourceList {
	out := a.cfg.Reserved.DeepCopy()
	if out == nil {
		out = corev1.ResourceList{}
	}
	if len(a.cfg.Exclusive.ReservedMemory) > 0 {
		delete(out, corev1.ResourceMemory) // which says it by memory node
	}
	if n := a.cfg.Exclusive.ReservedCPUs.Size(); n > 0 {
		out[corev1.ResourceCPU] = *resource.NewQuantity(int64(n), resource.DecimalSI)
	}
	for _, list := range a.cfg.Exclusive.ReservedMemory {
		for name, bytes := range list {
			q := out[name]
			q.Add(*resource.NewQuantity(bytes, resource.BinarySI))
			out[name] = q
		}
	}
	return out
}

// shareCPUs keeps the containers that have no CPUs alone off those of the others,
// until ctx ends.
func (a *Agent) shareCPUs(ctx context.Context) error {
	told := map[string]string{} // by container
	for {
		seen := map[string]string{}
		for _, act := range a.pods.all() {
			pod, v := act.Snapshot()
			for name, list := range v.Containers {
				if len(list) == 0 || !list[0].Running() {
					continue
				}
				id, want := list[0].Id, a.cpus.Shared().String()
				if own := a.cpus.Exclusive(string(pod.UID), name); !own.IsEmpty() && podspec.ContainerKind(pod, name) != "ephemeral_container" {
					want = own.String()
				}
				seen[id] = want
				if told[id] == want {
					continue
				}
				_, err := a.cfg.CRI.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: want}})
				if err != nil && ctx.Err() == nil {
					delete(seen, id)
					a.cfg.Log.Warn("a container could not be put on its CPUs; it will be tried again", "pod", pod.Namespace+"/"+pod.Name, "container", name, "cpus", want, "error", err)
				}
			}
		}
		told = seen
		t := a.cfg.Clock.NewTimer(shareEvery)
		select {
		case <-a.unequal:
		case <-t.C():
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
