package cpus

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent/topology"
)

// Options are those of the static policy.
type Options struct {
	// FullCores gives whole cores only, so that no two containers share one.
	FullCores bool
	// SpreadNodes takes equally from the NUMA nodes if one does not suffice.
	SpreadNodes bool
	// SpreadCores takes one CPU of each core before a second of any.
	SpreadCores bool
	// AlignSocket counts a socket's NUMA nodes as one.
	AlignSocket bool
	// StrictReservation keeps the containers that share off the reserved CPUs.
	StrictReservation bool
	// AlignCache takes whole caches of the last level before parts of them.
	AlignCache bool
}

// level is a part of the machine of which a CPU is taken whole if it can be.
type level func(Place) int

func socket(p Place) int { return p.Socket }
func node(p Place) int   { return p.Node }
func cache(p Place) int  { return p.Cache }
func core(p Place) int   { return p.Core }

// Take picks n of the free CPUs: whole sockets, NUMA nodes, caches and cores first, in
// this order, and then such that as few of them as possible are begun.
func Take(m Machine, free cpuset.CPUSet, n int, o Options) (cpuset.CPUSet, error) {
	if o.FullCores {
		free = wholeCores(m, free)
	}
	if n > free.Size() {
		return cpuset.CPUSet{}, fmt.Errorf("not enough cpus available to satisfy request: requested=%d, available=%d", n, free.Size())
	}
	if o.SpreadNodes {
		if got, ok := spread(m, free, n, o); ok {
			return got, nil
		}
	}
	return pack(m, free, n, o), nil
}

// wholeCores are the free CPUs of cores of which all are free.
func wholeCores(m Machine, free cpuset.CPUSet) cpuset.CPUSet {
	per := m.PerCore()
	count := map[int]int{}
	for _, cpu := range free.UnsortedList() {
		count[m[cpu].Core]++
	}
	var out []int
	for _, cpu := range free.UnsortedList() {
		if count[m[cpu].Core] == per {
			out = append(out, cpu)
		}
	}
	return cpuset.New(out...)
}

// pack takes the largest parts that fit, then single CPUs.
func pack(m Machine, free cpuset.CPUSet, n int, o Options) cpuset.CPUSet {
	taken := cpuset.New()
	levels := []level{socket, node}
	if len(parts(m, m.All(), node)) < len(parts(m, m.All(), socket)) {
		levels = []level{node, socket}
	}
	if o.AlignCache {
		levels = append(levels, cache)
	}
	if !o.SpreadCores {
		levels = append(levels, core)
	}
	for _, l := range levels {
		size := map[int]int{}
		for _, p := range m {
			size[l(p)]++
		}
		for {
			whole := parts(m, free, l)
			var fit []int
			for id, cpus := range whole {
				if cpus.Size() == size[id] && cpus.Size() <= n-taken.Size() {
					fit = append(fit, id)
				}
			}
			if len(fit) == 0 {
				break
			}
			best := slices.MinFunc(fit, func(a, b int) int { return compare(m, free, taken, whole[a], whole[b]) })
			taken, free = taken.Union(whole[best]), free.Difference(whole[best])
		}
	}
	for taken.Size() < n {
		var best cpuset.CPUSet
		for _, cpu := range free.List() {
			one := cpuset.New(cpu)
			if best.IsEmpty() || single(m, free, taken, one, best, o) < 0 {
				best = one
			}
		}
		taken, free = taken.Union(best), free.Difference(best)
	}
	return taken
}

// parts divides CPUs.
func parts(m Machine, cpus cpuset.CPUSet, l level) map[int]cpuset.CPUSet {
	lists := map[int][]int{}
	for _, cpu := range cpus.UnsortedList() {
		lists[l(m[cpu])] = append(lists[l(m[cpu])], cpu)
	}
	out := map[int]cpuset.CPUSet{}
	for id, list := range lists {
		out[id] = cpuset.New(list...)
	}
	return out
}

// near counts the CPUs of a set that are in the same part as those of another.
func near(m Machine, set, of cpuset.CPUSet, l level) int {
	if of.IsEmpty() {
		return 0
	}
	id := l(m[of.List()[0]])
	n := 0
	for _, cpu := range set.UnsortedList() {
		if l(m[cpu]) == id {
			n++
		}
	}
	return n
}

// compare orders candidates: near to what is taken already, then where the least is
// free around it, then the lowest number.
func compare(m Machine, free, taken, a, b cpuset.CPUSet) int {
	for _, l := range []level{node, socket} {
		if d := cmp.Compare(near(m, taken, b, l), near(m, taken, a, l)); d != 0 {
			return d
		}
	}
	for _, l := range []level{socket, node, cache} {
		if d := cmp.Compare(near(m, free, a, l), near(m, free, b, l)); d != 0 {
			return d
		}
	}
	return cmp.Compare(a.List()[0], b.List()[0])
}

// single orders single CPUs: like compare, and within that cores that are begun
// first, or last if they are to be spread.
func single(m Machine, free, taken, a, b cpuset.CPUSet, o Options) int {
	for _, l := range []level{node, socket} {
		if d := cmp.Compare(near(m, taken, b, l), near(m, taken, a, l)); d != 0 {
			return d
		}
	}
	if o.SpreadCores {
		if d := cmp.Compare(near(m, taken, a, core), near(m, taken, b, core)); d != 0 {
			return d
		}
	}
	for _, l := range []level{socket, node, cache} {
		if d := cmp.Compare(near(m, free, a, l), near(m, free, b, l)); d != 0 {
			return d
		}
	}
	d := cmp.Compare(near(m, free, a, core), near(m, free, b, core))
	if o.SpreadCores {
		d = -d
	}
	return cmp.Or(d, cmp.Compare(a.List()[0], b.List()[0]))
}

// spread takes equally from the fewest NUMA nodes that suffice together, of several
// such combinations the one that leaves the machine most even; false if equal shares
// are not to be had.
func spread(m Machine, free cpuset.CPUSet, n int, o Options) (cpuset.CPUSet, bool) {
	unit := 1
	if o.FullCores {
		unit = m.PerCore()
	}
	byNode := parts(m, free, node)
	var nodes topology.Mask
	for id := range byNode {
		nodes |= topology.Of(id)
	}
	size, bestScore := 0, math.Inf(1)
	var best topology.Mask
	topology.Subsets(nodes, func(set topology.Mask) {
		k := set.Count()
		if size != 0 && k > size {
			return
		}
		share := n / k / unit * unit
		sum := 0
		for _, id := range set.Nodes() {
			if byNode[id].Size() < share {
				return
			}
			sum += byNode[id].Size()
		}
		if sum < n || share == 0 {
			return
		}
		var left []float64
		for id, cpus := range byNode {
			after := float64(cpus.Size())
			if set.Has(id) {
				after -= float64(share)
			}
			left = append(left, after)
		}
		if s := deviation(left); size == 0 || s < bestScore {
			size, best, bestScore = k, set, s
		}
	})
	if size == 0 {
		return cpuset.CPUSet{}, false
	}
	taken := cpuset.New()
	share := n / size / unit * unit
	for _, id := range best.Nodes() {
		taken = taken.Union(pack(m, byNode[id], share, o))
	}
	// What does not divide goes where most is left, a unit each.
	for taken.Size() < n {
		id := slices.MaxFunc(best.Nodes(), func(a, b int) int {
			return cmp.Or(cmp.Compare(byNode[a].Difference(taken).Size(), byNode[b].Difference(taken).Size()), cmp.Compare(b, a))
		})
		taken = taken.Union(pack(m, byNode[id].Difference(taken), min(unit, n-taken.Size()), o))
	}
	return taken, true
}

func deviation(x []float64) float64 {
	mean, sum := 0.0, 0.0
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		sum += (v - mean) * (v - mean)
	}
	return math.Sqrt(sum)
}
