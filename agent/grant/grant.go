// Package grant is what the node sets aside for a container beside its limits:
// devices, CPUs of its own, and what their drivers want the container to have.
package grant

import (
	"cmp"
	"maps"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Grant is what one container has.
type Grant struct {
	Devices     []*runtimeapi.Device
	Mounts      []*runtimeapi.Mount
	Envs        []*runtimeapi.KeyValue
	Annotations map[string]string
	CDI         []*runtimeapi.CDIDevice
	// CPUs and Memory are the CPUs and NUMA nodes that the container may use, as
	// cpuset(7) writes lists; empty: all.
	CPUs, Memory string
}

// Apply puts the grant into a container's configuration. What the pod sets itself
// goes before the drivers' variables.
func (g *Grant) Apply(c *runtimeapi.ContainerConfig) {
	if g == nil {
		return
	}
	c.Devices = append(c.Devices, g.Devices...)
	c.Mounts = append(c.Mounts, g.Mounts...)
	c.CDIDevices = append(c.CDIDevices, g.CDI...)
	set := map[string]bool{}
	for _, e := range c.Envs {
		set[e.Key] = true
	}
	for _, e := range g.Envs {
		if !set[e.Key] {
			c.Envs = append(c.Envs, e)
		}
	}
	for k, v := range g.Annotations {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		if _, ours := c.Annotations[k]; !ours {
			c.Annotations[k] = v
		}
	}
	if r := c.GetLinux().GetResources(); r != nil {
		r.CpusetCpus, r.CpusetMems = cmp.Or(g.CPUs, r.CpusetCpus), cmp.Or(g.Memory, r.CpusetMems)
	}
}

// Add puts another grant to this one.
func (g *Grant) Add(o *Grant) {
	if o == nil {
		return
	}
	g.Devices = append(g.Devices, o.Devices...)
	g.Mounts = append(g.Mounts, o.Mounts...)
	g.Envs = append(g.Envs, o.Envs...)
	g.CDI = append(g.CDI, o.CDI...)
	if g.Annotations == nil {
		g.Annotations = map[string]string{}
	}
	maps.Copy(g.Annotations, o.Annotations)
	g.CPUs, g.Memory = cmp.Or(o.CPUs, g.CPUs), cmp.Or(o.Memory, g.Memory)
}
