// Package topology decides from which NUMA nodes a container's resources come, as
// the topology manager of a kubelet does:
// https://kubernetes.io/docs/tasks/administer-cluster/topology-manager.
//
// Whoever hands out a resource (CPUs, memory, devices) is a Provider and says by
// hints which sets of nodes would do. Merge finds the set that suits all, and the
// policy whether that is good enough. Everything here is pure.
package topology

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Mask is a set of NUMA nodes, bit n for node n. There are at most 64.
type Mask uint64

// Of is the set of those nodes.
func Of(nodes ...int) (m Mask) {
	for _, n := range nodes {
		m |= 1 << n
	}
	return m
}

// Count is how many nodes the set has.
func (m Mask) Count() int { return bits.OnesCount64(uint64(m)) }

// Has tells whether the set has a node.
func (m Mask) Has(node int) bool { return m&(1<<node) != 0 }

// Nodes lists the set in ascending order.
func (m Mask) Nodes() []int {
	var out []int
	for ; m != 0; m &= m - 1 {
		out = append(out, bits.TrailingZeros64(uint64(m)))
	}
	return out
}

// String lists the set as 0,2.
func (m Mask) String() string {
	var out []string
	for _, n := range m.Nodes() {
		out = append(out, strconv.Itoa(n))
	}
	return strings.Join(out, ",")
}

// Hint is a set of nodes from which a resource can be had. Nodes 0 means that it does
// not matter from where.
type Hint struct {
	Nodes     Mask
	Preferred bool // no smaller set would do
}

// Provider hands a resource out.
type Provider interface {
	// Hints says by resource name how a container's request can be met; c nil means
	// the whole pod. A resource that is missing, or whose list is nil, does not
	// matter; an empty list means that it cannot be had.
	Hints(pod *corev1.Pod, c *corev1.Container) map[string][]Hint
	// Allocate sets the resource aside, from the nodes of affinity first; 0: from
	// anywhere. What a container has already it keeps.
	Allocate(pod *corev1.Pod, c *corev1.Container, affinity Mask) error
}

// Names of policies and scopes, as kubelets have them.
const (
	None           = "none"
	BestEffort     = "best-effort"
	Restricted     = "restricted"
	SingleNUMANode = "single-numa-node"

	ScopeContainer = "container"
	ScopePod       = "pod"

	// PreferClosest is the option by which, of equally large sets, that is taken
	// whose nodes are nearest to each other.
	PreferClosest = "prefer-closest-numa-nodes"
	// MaxNodes is an option of kubelets; here the number of nodes costs little.
	MaxNodes = "max-allowable-numa-nodes"
)

// Config is a policy.
type Config struct {
	Policy  string // empty: none
	Scope   string // empty: container
	Options map[string]string
}

// Validate finds what is not known.
func (c Config) Validate() error {
	if !slices.Contains([]string{"", None, BestEffort, Restricted, SingleNUMANode}, c.Policy) {
		return fmt.Errorf("topologyManagerPolicy %q: want none, best-effort, restricted or single-numa-node", c.Policy)
	}
	if !slices.Contains([]string{"", ScopeContainer, ScopePod}, c.Scope) {
		return fmt.Errorf("topologyManagerScope %q: want container or pod", c.Scope)
	}
	for name, v := range c.Options {
		switch name {
		case PreferClosest:
			if _, err := strconv.ParseBool(v); err != nil {
				return fmt.Errorf("topologyManagerPolicyOptions: %s: %q is neither true nor false", name, v)
			}
		case MaxNodes:
			if n, err := strconv.Atoi(v); err != nil || n < 8 {
				return fmt.Errorf("topologyManagerPolicyOptions: %s: %q must be a number from 8 on", name, v)
			}
		default:
			return fmt.Errorf("topologyManagerPolicyOptions: unknown option %q", name)
		}
	}
	return nil
}

// Merge finds the best hint that suits all resources of all providers, and whether
// the policy admits it. nodes are those of the machine; distance is how far two of
// them are apart, nil if that is not known.
func (c Config) Merge(hints []map[string][]Hint, nodes Mask, distance func(a, b int) int) (Hint, bool) {
	if c.Policy == "" || c.Policy == None {
		return Hint{}, true
	}
	lists, wanted := c.filter(hints, nodes)
	// The merged set is the intersection; it is preferred if all its parts are. Both
	// can be computed list by list, without looking at all combinations.
	sets := map[Hint]bool{{Nodes: nodes, Preferred: true}: true}
	for _, list := range lists {
		next := map[Hint]bool{}
		for a := range sets {
			for _, b := range list {
				h := Hint{Nodes: a.Nodes & all(b.Nodes, nodes), Preferred: a.Preferred && b.Preferred}
				if h.Nodes != 0 {
					next[h] = true
				}
			}
		}
		sets = next
	}
	best := Hint{Nodes: nodes}
	found := false
	for h := range sets {
		if !found || c.better(h, best, wanted, distance) {
			best, found = h, true
		}
	}
	if c.Policy == SingleNUMANode && best.Nodes == nodes && nodes.Count() > 1 {
		best.Nodes = 0
	}
	return best, c.Policy == BestEffort || best.Preferred
}

func all(m, nodes Mask) Mask {
	if m == 0 {
		return nodes
	}
	return m
}

// filter lists the hints of all resources; wanted is how many nodes the most
// demanding resource needs at least.
func (c Config) filter(hints []map[string][]Hint, nodes Mask) (lists [][]Hint, wanted int) {
	for _, byName := range hints {
		for _, list := range byName {
			if list == nil {
				continue
			}
			if len(list) == 0 {
				lists = append(lists, []Hint{{}})
				continue
			}
			if c.Policy == SingleNUMANode {
				list = slices.DeleteFunc(slices.Clone(list), func(h Hint) bool { return h.Nodes.Count() > 1 || !h.Preferred })
			}
			least := 0
			for _, h := range list {
				if n := all(h.Nodes, nodes).Count(); h.Preferred && (least == 0 || n < least) {
					least = n
				}
			}
			wanted = max(wanted, least)
			lists = append(lists, list)
		}
	}
	return lists, wanted
}

// better compares hints: preferred ones first, of these the smallest set; of the
// others that whose size is nearest to what is wanted, from below.
func (c Config) better(a, b Hint, wanted int, distance func(a, b int) int) bool {
	if a.Preferred != b.Preferred {
		return a.Preferred
	}
	x, y := a.Nodes.Count(), b.Nodes.Count()
	if !a.Preferred {
		x, y = off(x, wanted), off(y, wanted)
	}
	if x != y {
		return x < y
	}
	if closest, _ := strconv.ParseBool(c.Options[PreferClosest]); closest && distance != nil {
		if x, y := apart(a.Nodes, distance), apart(b.Nodes, distance); x != y {
			return x < y
		}
	}
	return a.Nodes < b.Nodes
}

// off orders sizes: the wanted one, the smaller ones from the largest, the larger ones
// from the smallest.
func off(n, wanted int) int {
	if n <= wanted {
		return wanted - n
	}
	return wanted + n
}

// apart is the average distance between the nodes of a set.
func apart(m Mask, distance func(a, b int) int) float64 {
	sum, n := 0, 0
	for _, a := range m.Nodes() {
		for _, b := range m.Nodes() {
			sum += distance(a, b)
			n++
		}
	}
	return float64(sum) / float64(max(n, 1))
}
