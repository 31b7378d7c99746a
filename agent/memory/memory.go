// Package memory ties containers to the NUMA nodes from which they have their memory,
// as a kubelet's memory manager with the Static policy does:
// https://kubernetes.io/docs/tasks/administer-cluster/memory-manager.
//
// Containers of guaranteed pods have memory and huge pages of the nodes that they are
// tied to; of those nodes no more is promised than they have.
package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/checkpoint"
	"knarr.dev/knarr/agent/grant"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/topology"
)

// Static is the policy by which containers are tied to nodes.
const Static = "Static"

// Amounts are bytes by resource: memory and hugepages-SIZE.
type Amounts map[corev1.ResourceName]int64

// Block is what a container has of a set of nodes.
type Block struct {
	Nodes topology.Mask       `json:"nodes"`
	Type  corev1.ResourceName `json:"type"`
	Size  int64               `json:"size"`
}

// Config is what a Manager needs.
type Config struct {
	// Nodes is what each NUMA node has for pods: what the system needs is taken off.
	Nodes map[int]Amounts
	File  string // keeps who has what
}

// Manager ties containers to nodes. Make one with New.
type Manager struct {
	cfg Config

	mu    sync.Mutex
	given map[string]map[string][]Block // by pod UID and container
}

// New returns a manager that knows what containers have since an earlier agent's time.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, given: map[string]map[string][]Block{}}
	if err := checkpoint.Load(cfg.File, &m.given); err != nil {
		return nil, fmt.Errorf("which containers have memory of which nodes: %w: drain the node and remove the file", err)
	}
	for uid, containers := range m.given {
		for c, blocks := range containers {
			for _, b := range blocks {
				for _, n := range b.Nodes.Nodes() {
					if cfg.Nodes[n] == nil {
						return nil, fmt.Errorf("%s ties container %s of pod %s to NUMA node %d, which this machine has not: drain the node and remove the file", cfg.File, c, uid, n)
					}
				}
			}
		}
	}
	return m, nil
}

func (m *Manager) save() error {
	if err := checkpoint.Save(m.cfg.File, m.given); err != nil {
		return fmt.Errorf("note which containers have memory of which nodes: %w", err)
	}
	return nil
}

// wants is what a container of a guaranteed pod asks for.
func wants(pod *corev1.Pod, c *corev1.Container) Amounts {
	out := Amounts{}
	if podspec.QOS(pod) != corev1.PodQOSGuaranteed {
		return out
	}
	for name, q := range c.Resources.Limits {
		if (name == corev1.ResourceMemory || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)) && q.Value() > 0 {
			out[name] = q.Value()
		}
	}
	return out
}

func ended(pod *corev1.Pod, container string) bool {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == container })
	return i >= 0 && !podspec.IsSidecar(&pod.Spec.InitContainers[i])
}

// free is what a set of nodes has left for a pod's container. Nodes that are promised
// together with others are only had together with them: else a promise to both might
// be broken for one's sake.
func (m *Manager) free(pod *corev1.Pod, set topology.Mask, name corev1.ResourceName) int64 {
	var sum int64
	for _, n := range set.Nodes() {
		sum += m.cfg.Nodes[n][name]
	}
	for uid, containers := range m.given {
		for c, blocks := range containers {
			if uid == string(pod.UID) && ended(pod, c) {
				continue // its memory is free when the others begin
			}
			for _, b := range blocks {
				switch {
				case b.Nodes&set == 0:
				case b.Nodes != set:
					return 0
				case b.Type == name:
					sum -= b.Size
				}
			}
		}
	}
	return sum
}

// hints lists the sets of nodes that have enough of everything.
func (m *Manager) hints(pod *corev1.Pod, want Amounts) []topology.Hint {
	var nodes topology.Mask
	for n := range m.cfg.Nodes {
		nodes |= topology.Of(n)
	}
	hints, least := []topology.Hint{}, 0
	topology.Subsets(nodes, func(set topology.Mask) {
		fits, could := true, true
		for name, n := range want {
			var all int64
			for _, id := range set.Nodes() {
				all += m.cfg.Nodes[id][name]
			}
			could = could && all >= n
			fits = fits && m.free(pod, set, name) >= n
		}
		if could && least == 0 {
			least = set.Count()
		}
		if fits {
			hints = append(hints, topology.Hint{Nodes: set})
		}
	})
	return topology.Minimal(hints, least)
}

// Hints implements topology.Provider.
func (m *Manager) Hints(pod *corev1.Pod, c *corev1.Container) map[string][]topology.Hint {
	m.mu.Lock()
	defer m.mu.Unlock()
	want := Amounts{}
	if c != nil {
		want = wants(pod, c)
		if have := m.given[string(pod.UID)][c.Name]; len(have) > 0 {
			return map[string][]topology.Hint{"memory": {{Nodes: have[0].Nodes, Preferred: true}}}
		}
	} else {
		first := Amounts{}
		podspec.Containers(pod, func(c *corev1.Container, init bool) {
			for name, n := range wants(pod, c) {
				if init && !podspec.IsSidecar(c) {
					first[name] = max(first[name], n)
				} else {
					want[name] += n
				}
			}
		})
		for name, n := range first {
			want[name] = max(want[name], n)
		}
	}
	if len(want) == 0 {
		return nil
	}
	return map[string][]topology.Hint{"memory": m.hints(pod, want)}
}

// Allocate implements topology.Provider.
func (m *Manager) Allocate(pod *corev1.Pod, c *corev1.Container, affinity topology.Mask) error {
	want, uid := wants(pod, c), string(pod.UID)
	if len(want) == 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.given[uid][c.Name] != nil {
		return nil
	}
	set, err := m.choose(pod, want, affinity)
	if err != nil {
		return err
	}
	var blocks []Block
	for _, name := range slices.Sorted(maps.Keys(want)) {
		blocks = append(blocks, Block{Nodes: set, Type: name, Size: want[name]})
	}
	if m.given[uid] == nil {
		m.given[uid] = map[string][]Block{}
	}
	m.given[uid][c.Name] = blocks
	if err := m.save(); err != nil {
		delete(m.given[uid], c.Name)
		return err
	}
	return nil
}

// choose finds the nodes: those of affinity if they have enough, else the fewest that
// hold them, else the fewest of all.
func (m *Manager) choose(pod *corev1.Pod, want Amounts, affinity topology.Mask) (topology.Mask, error) {
	var any, around topology.Mask
	for _, h := range m.hints(pod, want) {
		if h.Nodes == affinity {
			return affinity, nil
		}
		if around == 0 && affinity != 0 && h.Nodes&affinity == affinity {
			around = h.Nodes
		}
		if any == 0 {
			any = h.Nodes
		}
	}
	switch {
	case around != 0:
		return around, nil
	case any != 0:
		return any, nil
	}
	return 0, fmt.Errorf("no NUMA nodes have enough memory left together for %s", text(want))
}

func text(want Amounts) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		out = append(out, fmt.Sprintf("%d bytes of %s", want[name], name))
	}
	return strings.Join(out, " and ")
}

// Held is what a container has; nil: it is not tied.
func (m *Manager) Held(uid, container string) []Block {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.given[uid][container]
}

// Pinned tells whether a container of the pod is tied.
func (m *Manager) Pinned(uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.given[uid]) > 0
}

// All is what the nodes have for pods, a block for each node and resource.
func (m *Manager) All() []Block {
	var out []Block
	for _, n := range slices.Sorted(maps.Keys(m.cfg.Nodes)) {
		for _, name := range slices.Sorted(maps.Keys(m.cfg.Nodes[n])) {
			out = append(out, Block{Nodes: topology.Of(n), Type: name, Size: m.cfg.Nodes[n][name]})
		}
	}
	return out
}

// Grant tells the nodes of a container.
func (m *Manager) Grant(_ context.Context, uid, container string) (*grant.Grant, error) {
	if b := m.Held(uid, container); len(b) > 0 {
		return &grant.Grant{Memory: b[0].Nodes.String()}, nil
	}
	return nil, nil
}

// Release takes back what a pod has. It may be repeated.
func (m *Manager) Release(uid string) error {
	return m.drop(func(other string) bool { return other == uid })
}

// Keep takes back what pods have that are not among those.
func (m *Manager) Keep(pods map[string]bool) error {
	return m.drop(func(uid string) bool { return !pods[uid] })
}

func (m *Manager) drop(gone func(uid string) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.given)
	maps.DeleteFunc(m.given, func(uid string, _ map[string][]Block) bool { return gone(uid) })
	if len(m.given) == before {
		return nil
	}
	return m.save()
}
