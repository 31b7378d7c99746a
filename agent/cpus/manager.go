package cpus

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent/checkpoint"
	"knarr.dev/knarr/agent/grant"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/topology"
)

// Static is the policy by which containers get CPUs of their own.
const Static = "static"

// Config is what a Manager needs.
type Config struct {
	Machine  Machine
	Options  Options
	Reserved cpuset.CPUSet // never given to a container alone
	File     string        // keeps who has which
	// Changed is called when the CPUs that are shared have changed. It must not block.
	Changed func()
}

// Manager gives CPUs to containers by the static policy. Make one with New.
type Manager struct {
	cfg Config

	mu    sync.Mutex
	given map[string]map[string]cpuset.CPUSet // by pod UID and container
}

// state is the content of the file.
type state struct {
	Policy string                       `json:"policyName"`
	Pods   map[string]map[string]string `json:"entries,omitempty"`
}

// New returns a manager that knows what containers have since an earlier agent's time.
func New(cfg Config) (*Manager, error) {
	all := cfg.Machine.All()
	if cfg.Reserved.IsEmpty() || !cfg.Reserved.IsSubsetOf(all) {
		return nil, fmt.Errorf("the static CPU policy needs some CPUs reserved for the system, of the machine's %s, not %q: set reservedSystemCPUs", all, cfg.Reserved)
	}
	if cfg.Reserved.Equals(all) {
		return nil, fmt.Errorf("all CPUs, %s, are reserved for the system: the static CPU policy has none to give", all)
	}
	m := &Manager{cfg: cfg, given: map[string]map[string]cpuset.CPUSet{}}
	var s state
	if err := checkpoint.Load(cfg.File, &s); err != nil {
		return nil, fmt.Errorf("which containers have which CPUs: %w: drain the node and remove the file", err)
	}
	for uid, containers := range s.Pods {
		m.given[uid] = map[string]cpuset.CPUSet{}
		for c, text := range containers {
			set, err := cpuset.Parse(text)
			if err != nil || !set.IsSubsetOf(all) {
				return nil, fmt.Errorf("%s gives container %s of pod %s the CPUs %q, which this machine has not: drain the node and remove the file", cfg.File, c, uid, text)
			}
			m.given[uid][c] = set
		}
	}
	return m, nil
}

func (m *Manager) save() error {
	s := state{Policy: Static, Pods: map[string]map[string]string{}}
	for uid, containers := range m.given {
		s.Pods[uid] = map[string]string{}
		for c, set := range containers {
			s.Pods[uid][c] = set.String()
		}
	}
	if err := checkpoint.Save(m.cfg.File, s); err != nil {
		return fmt.Errorf("note which containers have which CPUs: %w", err)
	}
	return nil
}

// whole is how many CPUs of its own a container asks for.
func whole(pod *corev1.Pod, c *corev1.Container) int {
	if podspec.QOS(pod) != corev1.PodQOSGuaranteed {
		return 0
	}
	q := c.Resources.Requests.Cpu()
	if _, asked := c.Resources.Requests[corev1.ResourceCPU]; !asked {
		q = c.Resources.Limits.Cpu() // which stands for both
	}
	if q.MilliValue()%1000 != 0 {
		return 0
	}
	return int(q.Value())
}

// Allocatable are the CPUs that containers may have alone.
func (m *Manager) Allocatable() cpuset.CPUSet { return m.cfg.Machine.All().Difference(m.cfg.Reserved) }

// Exclusive are the CPUs that a container has alone; empty: none.
func (m *Manager) Exclusive(uid, container string) cpuset.CPUSet {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.given[uid][container]
}

// Alone tells whether a container has CPUs alone.
func (m *Manager) Alone(uid, container string) bool { return !m.Exclusive(uid, container).IsEmpty() }

// Pinned tells whether a container of the pod has CPUs alone.
func (m *Manager) Pinned(uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.given[uid]) > 0
}

// Shared are the CPUs of all containers that have none alone.
func (m *Manager) Shared() cpuset.CPUSet {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shared()
}

func (m *Manager) shared() cpuset.CPUSet {
	out := m.cfg.Machine.All()
	for _, containers := range m.given {
		for _, set := range containers {
			out = out.Difference(set)
		}
	}
	if m.cfg.Options.StrictReservation {
		out = out.Difference(m.cfg.Reserved)
	}
	return out
}

// free are the CPUs that a pod's container may get; reuse those among them that its
// init containers had.
func (m *Manager) free(pod *corev1.Pod) (free, reuse cpuset.CPUSet) {
	uid := string(pod.UID)
	free = m.Allocatable()
	for other, containers := range m.given {
		for c, set := range containers {
			if other == uid && ended(pod, c) {
				reuse = reuse.Union(set)
			} else {
				free = free.Difference(set)
			}
		}
	}
	return free, reuse.Intersection(free)
}

// ended tells whether a container is an init container, which has ended before the
// main ones begin.
func ended(pod *corev1.Pod, container string) bool {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == container })
	return i >= 0 && !podspec.IsSidecar(&pod.Spec.InitContainers[i])
}

// Hints implements topology.Provider.
func (m *Manager) Hints(pod *corev1.Pod, c *corev1.Container) map[string][]topology.Hint {
	n, mine := 0, cpuset.New()
	if c != nil {
		n, mine = whole(pod, c), m.Exclusive(string(pod.UID), c.Name)
	} else {
		first := 0
		podspec.Containers(pod, func(c *corev1.Container, init bool) {
			if init && !podspec.IsSidecar(c) {
				first = max(first, whole(pod, c))
			} else {
				n += whole(pod, c)
			}
		})
		n = max(n, first)
	}
	if n == 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var nodes topology.Mask
	for _, p := range m.cfg.Machine {
		nodes |= topology.Of(p.Node)
	}
	if mine.Size() == n {
		var mask topology.Mask
		for _, cpu := range mine.UnsortedList() {
			mask |= topology.Of(m.cfg.Machine[cpu].Node)
		}
		return map[string][]topology.Hint{"cpu": {{Nodes: mask, Preferred: true}}}
	}
	free, reuse := m.free(pod)
	if m.cfg.Options.FullCores {
		free = wholeCores(m.cfg.Machine, free)
	}
	hints, least, sockets := []topology.Hint{}, 0, 0
	topology.Subsets(nodes, func(set topology.Mask) {
		within := m.cfg.Machine.where(func(p Place) bool { return set.Has(p.Node) })
		if within.Size() >= n && least == 0 {
			least = set.Count()
			sockets = len(parts(m.cfg.Machine, within, socket))
		}
		if within.Intersection(free).Size() >= n && reuse.Intersection(within).Size() == min(reuse.Size(), n) {
			hints = append(hints, topology.Hint{Nodes: set})
		}
	})
	if m.cfg.Options.AlignSocket {
		for i := range hints {
			within := m.cfg.Machine.where(func(p Place) bool { return hints[i].Nodes.Has(p.Node) })
			hints[i].Preferred = len(parts(m.cfg.Machine, within, socket)) == sockets
		}
		return map[string][]topology.Hint{"cpu": hints}
	}
	return map[string][]topology.Hint{"cpu": topology.Minimal(hints, least)}
}

// smtError refuses a request that would have containers share a core.
type smtError struct{ message string }

func (e smtError) Error() string  { return e.message }
func (e smtError) Reason() string { return "SMTAlignmentError" }

// Allocate implements topology.Provider.
func (m *Manager) Allocate(pod *corev1.Pod, c *corev1.Container, affinity topology.Mask) error {
	n, uid := whole(pod, c), string(pod.UID)
	if n == 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.given[uid][c.Name].Size() == n {
		return nil
	}
	free, reuse := m.free(pod)
	if per := m.cfg.Machine.PerCore(); m.cfg.Options.FullCores {
		if n%per != 0 {
			return smtError{fmt.Sprintf("SMT Alignment Error: requested %d cpus not multiple cpus per core = %d", n, per)}
		}
		if whole := wholeCores(m.cfg.Machine, free); whole.Size() < n {
			return smtError{fmt.Sprintf("SMT Alignment Error: not enough free physical CPUs: available physical CPUs = %d, requested CPUs = %d, CPUs per core = %d", whole.Size(), n, per)}
		}
	}
	got, err := m.take(free, reuse, n, affinity)
	if err != nil {
		return err
	}
	before := m.shared()
	if m.given[uid] == nil {
		m.given[uid] = map[string]cpuset.CPUSet{}
	}
	m.given[uid][c.Name] = got
	if err := m.save(); err != nil {
		delete(m.given[uid], c.Name)
		return err
	}
	if !m.shared().Equals(before) {
		m.cfg.Changed()
	}
	return nil
}

// take picks CPUs: those that init containers had, then those of the wanted nodes,
// then others.
func (m *Manager) take(free, reuse cpuset.CPUSet, n int, affinity topology.Mask) (cpuset.CPUSet, error) {
	tiers := []cpuset.CPUSet{reuse}
	if affinity != 0 {
		on := func(p Place) bool { return affinity.Has(p.Node) }
		if m.cfg.Options.AlignSocket {
			sockets := parts(m.cfg.Machine, m.cfg.Machine.where(on), socket)
			on = func(p Place) bool { _, ok := sockets[p.Socket]; return ok }
		}
		tiers = append(tiers, m.cfg.Machine.where(on).Intersection(free))
	}
	tiers = append(tiers, free)
	if m.cfg.Options.FullCores {
		for i := range tiers {
			tiers[i] = wholeCores(m.cfg.Machine, tiers[i])
		}
	}
	got := cpuset.New()
	for _, tier := range tiers {
		tier = tier.Difference(got)
		left := n - got.Size()
		if tier.Size() < left && !tier.Equals(free.Difference(got)) {
			got = got.Union(tier)
			continue
		}
		more, err := Take(m.cfg.Machine, tier, left, m.cfg.Options)
		if err != nil {
			return got, err
		}
		return got.Union(more), nil
	}
	return got, fmt.Errorf("not enough cpus available to satisfy request: requested=%d, available=%d", n, got.Size())
}

// Grant tells the CPUs of a container.
func (m *Manager) Grant(_ context.Context, uid, container string) (*grant.Grant, error) {
	if own := m.Exclusive(uid, container); !own.IsEmpty() {
		return &grant.Grant{CPUs: own.String()}, nil
	}
	return &grant.Grant{CPUs: m.Shared().String()}, nil
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
	maps.DeleteFunc(m.given, func(uid string, _ map[string]cpuset.CPUSet) bool { return gone(uid) })
	if len(m.given) == before {
		return nil
	}
	m.cfg.Changed()
	return m.save()
}
