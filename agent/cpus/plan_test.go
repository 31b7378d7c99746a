package cpus

import (
	"testing"

	"k8s.io/utils/cpuset"
)

// machine invents one: sockets of nodes of cores of threads. Threads of a core are
// numbered as Linux does on most machines: first all cores' first threads.
func machine(sockets, nodes, cores, threads int) Machine {
	m := Machine{}
	total := sockets * nodes * cores
	for t := range threads {
		for c := range total {
			n := c / cores
			m[t*total+c] = Place{Socket: n / nodes, Node: n, Cache: c / 2, Core: c}
		}
	}
	return m
}

func TestTake(t *testing.T) {
	small := machine(1, 1, 4, 2) // 0-3, siblings 4-7
	two := machine(2, 1, 4, 2)   // nodes 0-3,8-11 and 4-7,12-15
	four := machine(2, 2, 2, 1)  // nodes 0,1 | 2,3 || 4,5 | 6,7
	flat := machine(1, 1, 2, 1)  // the machine on which this was written
	for _, tc := range []struct {
		name string
		m    Machine
		free string
		n    int
		o    Options
		want string // "": refused
	}{
		{"one of two", flat, "1", 1, Options{}, "1"},
		{"too many", flat, "1", 2, Options{}, ""},
		{"a core", small, "0-7", 2, Options{}, "0,4"},
		{"a core and a half", small, "0-7", 3, Options{}, "0-1,4"},
		{"the begun core first", small, "0-3,5-7", 1, Options{}, "0"},
		{"a whole core before parts", small, "0-3,5-7", 2, Options{}, "1,5"},
		{"all", small, "0-7", 8, Options{}, "0-7"},
		{"a whole socket", two, "0-15", 8, Options{}, "0-3,8-11"},
		{"a socket and a core", two, "0-15", 10, Options{}, "0-4,8-12"},
		{"the fuller socket", two, "0-15", 2, Options{}, "0,8"},
		{"the socket with less left", two, "0-7,9-10,12-15", 2, Options{}, "1,9"},
		{"a whole node", four, "1-7", 2, Options{}, "2-3"},
		{"from one node although begun", four, "1-7", 1, Options{}, "1"},
		{"one node's rest and its neighbour", four, "0-7", 3, Options{}, "0-2"},
		{"across sockets", four, "0-7", 6, Options{}, "0-5"},
		{"full cores only", small, "1-7", 2, Options{FullCores: true}, "1,5"},
		{"no full core", small, "1-3", 2, Options{FullCores: true}, ""},
		{"spread over cores", small, "0-7", 4, Options{SpreadCores: true}, "0-3"},
		{"spread over nodes: one suffices", two, "0-15", 4, Options{SpreadNodes: true}, "0-1,8-9"},
		{"spread over nodes: two needed", two, "0-15", 10, Options{SpreadNodes: true}, "0-2,4-6,8-9,12-13"},
		{"spread, full cores", two, "0-15", 12, Options{SpreadNodes: true, FullCores: true}, "0-2,4-6,8-10,12-14"},
		{"spread, uneven", two, "0-15", 9, Options{SpreadNodes: true}, "0-2,4-5,8-9,12-13"},
		{"spread over the evenest pair", four, "0-7", 3, Options{SpreadNodes: true}, "0-2"},
		{"spread cannot be even", four, "0-1,4", 3, Options{SpreadNodes: true}, "0-1,4"},
		{"caches", machine(1, 1, 8, 1), "1-7", 2, Options{AlignCache: true}, "2-3"},
		{"no caches", machine(1, 1, 8, 1), "1-7", 2, Options{}, "1-2"},
	} {
		free, err := cpuset.Parse(tc.free)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Take(tc.m, free, tc.n, tc.o)
		if err != nil && tc.want == "" {
			continue
		}
		if err != nil || got.String() != tc.want {
			t.Errorf("%s: %d of %s: %s, %v; want %s", tc.name, tc.n, tc.free, got, err, tc.want)
		}
	}
}

// Whatever is free, n CPUs of it are taken, and whole cores if that is demanded.
func FuzzTake(f *testing.F) {
	f.Add(uint64(0xffff), uint8(5), uint8(0))
	f.Add(uint64(0xf3f1), uint8(6), uint8(63))
	m := machine(2, 2, 2, 2)
	f.Fuzz(func(t *testing.T, mask uint64, n, opts uint8) {
		var list []int
		for cpu := range len(m) {
			if mask&(1<<cpu) != 0 {
				list = append(list, cpu)
			}
		}
		free := cpuset.New(list...)
		o := Options{FullCores: opts&1 != 0, SpreadNodes: opts&2 != 0, SpreadCores: opts&4 != 0, AlignCache: opts&8 != 0}
		if o.FullCores {
			n = n / 2 * 2
		}
		got, err := Take(m, free, int(n), o)
		if err != nil {
			if int(n) <= free.Size() && !o.FullCores {
				t.Fatalf("%d of %s were refused: %v", n, free, err)
			}
			return
		}
		if got.Size() != int(n) || !got.IsSubsetOf(free) {
			t.Fatalf("%d of %s: %s", n, free, got)
		}
		if o.FullCores && !o.SpreadCores && wholeCores(m, got).Size() != int(n) {
			t.Fatalf("%s are not whole cores", got)
		}
	})
}
