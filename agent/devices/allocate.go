package devices

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"knarr.dev/knarr/agent/grant"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/topology"
)

// wants are the devices that a container asks for, by resource.
func (m *Manager) wants(c *corev1.Container) map[string]int {
	out := map[string]int{}
	for name, q := range c.Resources.Limits {
		if n := int(q.Value()); n > 0 && m.Manages(name) {
			out[string(name)] = n
		}
	}
	return out
}

// Hints implements topology.Provider.
func (m *Manager) Hints(pod *corev1.Pod, c *corev1.Container) map[string][]topology.Hint {
	wants := map[string]int{}
	if c != nil {
		wants = m.wants(c)
	} else {
		podspec.Containers(pod, func(c *corev1.Container, init bool) {
			for name, n := range m.wants(c) {
				if init && !podspec.IsSidecar(c) {
					wants[name] = max(wants[name], n)
				} else {
					wants[name] += n
				}
			}
		})
	}
	out := map[string][]topology.Hint{}
	for name, n := range wants {
		out[name] = m.hints(pod, c, name, n)
	}
	return out
}

// hints lists the sets of nodes whose devices suffice.
func (m *Manager) hints(pod *corev1.Pod, c *corev1.Container, name string, n int) []topology.Hint {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.resources[name]
	var nodes topology.Mask
	for _, d := range k.devices {
		nodes |= topology.Of(d.nodes...)
	}
	if nodes == 0 {
		return nil // the plugin does not say where they are
	}
	uid := string(pod.UID)
	if c != nil {
		if h := m.held.Pods[uid][c.Name][name]; h != nil {
			var mask topology.Mask
			for _, id := range h.Devices {
				if d := k.devices[id]; d != nil {
					mask |= topology.Of(d.nodes...)
				}
			}
			return []topology.Hint{{Nodes: mask, Preferred: true}}
		}
	}
	free, reuse := m.free(pod, c, k)
	hints, least := []topology.Hint{}, 0
	topology.Subsets(nodes, func(set topology.Mask) {
		all, usable, again := 0, 0, 0
		for id, d := range k.devices {
			if topology.Of(d.nodes...)&set == 0 {
				continue
			}
			all++
			if free[id] {
				usable++
			}
			if reuse[id] {
				again++
			}
		}
		if all >= n && least == 0 {
			least = set.Count()
		}
		// What an init container had is taken over whole.
		if usable >= n && again == min(len(reuse), n) {
			hints = append(hints, topology.Hint{Nodes: set})
		}
	})
	return topology.Minimal(hints, least)
}

// free are the devices that a container may get; reuse those among them that init
// containers of its pod had, which it must take first.
func (m *Manager) free(pod *corev1.Pod, c *corev1.Container, k *kind) (free, reuse map[string]bool) {
	uid := string(pod.UID)
	ended := func(container string) bool {
		i := slices.IndexFunc(pod.Spec.InitContainers, func(ic corev1.Container) bool { return ic.Name == container })
		return i >= 0 && !podspec.IsSidecar(&pod.Spec.InitContainers[i])
	}
	used := m.held.used(k.name, uid, ended)
	free, reuse = map[string]bool{}, map[string]bool{}
	for id, d := range k.devices {
		if d.healthy && !used[id] {
			free[id] = true
		}
	}
	for container, byName := range m.held.Pods[uid] {
		if h := byName[k.name]; h != nil && ended(container) && (c == nil || container != c.Name) {
			for _, id := range h.Devices {
				if free[id] {
					reuse[id] = true
				}
			}
		}
	}
	return free, reuse
}

// Allocate implements topology.Provider.
func (m *Manager) Allocate(pod *corev1.Pod, c *corev1.Container, affinity topology.Mask) error {
	m.allocate.Lock()
	defer m.allocate.Unlock()
	wants := m.wants(c)
	for _, name := range slices.Sorted(maps.Keys(wants)) {
		if err := m.allocateOne(pod, c, name, wants[name], affinity); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) allocateOne(pod *corev1.Pod, c *corev1.Container, name string, n int, affinity topology.Mask) error {
	m.mu.Lock()
	ctx, k := m.ctx, m.resources[name]
	if h := m.held.Pods[string(pod.UID)][c.Name][name]; h != nil {
		defer m.mu.Unlock()
		if len(h.Devices) != n {
			return fmt.Errorf("container %s already holds %d of %s, which differs from the %d that it asks for now", c.Name, len(h.Devices), name, n)
		}
		return nil
	}
	e := k.plugin
	if e == nil || ctx == nil {
		m.mu.Unlock()
		return fmt.Errorf("cannot allocate unregistered device %s", name)
	}
	free, reuse := m.free(pod, c, k)
	if len(free) < n {
		m.mu.Unlock()
		return fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", name, n, len(free))
	}
	tiers := prefer(free, reuse, k.devices, affinity)
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	ids := choose(ctx, e, tiers, n)
	resp, err := e.client.Allocate(ctx, &pluginapi.AllocateRequest{ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return fmt.Errorf("the plugin of %s: %s", name, status.Convert(err).Message())
	}
	if len(resp.ContainerResponses) != 1 {
		return fmt.Errorf("the plugin of %s answered for %d containers instead of one", name, len(resp.ContainerResponses))
	}
	b, err := proto.Marshal(resp.ContainerResponses[0])
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held.put(string(pod.UID), c.Name, name, &holding{Devices: ids, Response: b})
	return m.held.save(m.cfg.File)
}

// prefer divides free devices into tiers, to be taken one after the other: those that
// the pod's init containers had, those of the wanted nodes, the others, each in order.
func prefer(free, reuse map[string]bool, devices map[string]*device, affinity topology.Mask) [][]string {
	tiers := make([][]string, 3)
	for _, id := range slices.Sorted(maps.Keys(free)) {
		tier := 2
		switch nodes := topology.Of(devices[id].nodes...); {
		case reuse[id]:
			tier = 0
		case affinity == 0 || nodes&affinity != 0:
			tier = 1
		}
		tiers[tier] = append(tiers[tier], id)
	}
	// Of devices that belong to several nodes, those with fewer go first.
	slices.SortStableFunc(tiers[1], func(a, b string) int { return cmp.Compare(len(devices[a].nodes), len(devices[b].nodes)) })
	return tiers
}

// choose takes n devices tier by tier. Where a tier has more than are wanted of it,
// the plugin is asked which, if it has an opinion.
func choose(ctx context.Context, e *endpoint, tiers [][]string, n int) []string {
	var out []string
	for _, tier := range tiers {
		left := n - len(out)
		if left == 0 {
			break
		}
		if len(tier) <= left {
			out = append(out, tier...)
			continue
		}
		picked := tier[:left]
		if e.options.GetGetPreferredAllocationAvailable() {
			resp, err := e.client.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{
				{AvailableDeviceIDs: append(slices.Clone(out), tier...), MustIncludeDeviceIDs: out, AllocationSize: int32(n)}}})
			if err == nil && len(resp.ContainerResponses) == 1 {
				picked = heed(resp.ContainerResponses[0].DeviceIDs, tier, left)
			}
		}
		out = append(out, picked...)
	}
	slices.Sort(out)
	return out
}

// heed takes of the wished devices those that are to be had, and fills up.
func heed(wished, tier []string, n int) []string {
	var out []string
	for _, list := range [][]string{wished, tier} {
		for _, id := range list {
			if len(out) < n && slices.Contains(tier, id) && !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	return out
}

// Grant is what the plugins want a container to have. Those that ask for it are told
// that the container is about to start.
func (m *Manager) Grant(ctx context.Context, uid, container string) (*grant.Grant, error) {
	m.mu.Lock()
	byName := maps.Clone(m.held.Pods[uid][container])
	m.mu.Unlock()
	g := &grant.Grant{Annotations: map[string]string{}}
	envs := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		h := byName[name]
		if err := m.starting(ctx, name, h.Devices); err != nil {
			return nil, err
		}
		r, err := h.response()
		if err != nil {
			return nil, fmt.Errorf("devices of %s that container %s holds: %w", name, container, err)
		}
		maps.Copy(envs, r.Envs)
		maps.Copy(g.Annotations, r.Annotations)
		for _, d := range r.Devices {
			g.Devices = append(g.Devices, &runtimeapi.Device{ContainerPath: d.ContainerPath, HostPath: d.HostPath, Permissions: d.Permissions})
		}
		for _, mt := range r.Mounts {
			g.Mounts = append(g.Mounts, &runtimeapi.Mount{ContainerPath: mt.ContainerPath, HostPath: mt.HostPath, Readonly: mt.ReadOnly})
		}
		for _, d := range r.CdiDevices {
			g.CDI = append(g.CDI, &runtimeapi.CDIDevice{Name: d.Name})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(envs)) {
		g.Envs = append(g.Envs, &runtimeapi.KeyValue{Key: k, Value: []byte(envs[k])})
	}
	slices.SortFunc(g.CDI, func(a, b *runtimeapi.CDIDevice) int { return strings.Compare(a.Name, b.Name) })
	return g, nil
}

// starting tells a plugin that wants to know it that its devices are about to be used.
func (m *Manager) starting(ctx context.Context, name string, ids []string) error {
	m.mu.Lock()
	var e *endpoint
	if k := m.resources[name]; k != nil {
		e = k.plugin
	}
	m.mu.Unlock()
	if e == nil || !e.options.GetPreStartRequired() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pluginapi.KubeletPreStartContainerRPCTimeoutInSecs*1e9)
	defer cancel()
	if _, err := e.client.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: ids}); err != nil {
		return fmt.Errorf("device plugin PreStartContainer rpc failed with err: %s", status.Convert(err).Message())
	}
	return nil
}
