package topology

// Subsets calls visit for every set of nodes that is not empty, smaller ones first.
func Subsets(nodes Mask, visit func(Mask)) {
	list := nodes.Nodes()
	for size := 1; size <= len(list); size++ {
		choose(list, size, 0, visit)
	}
}

func choose(list []int, size int, have Mask, visit func(Mask)) {
	if size == 0 {
		visit(have)
		return
	}
	for i := 0; i+size <= len(list); i++ {
		choose(list[i+1:], size-1, have|Of(list[i]), visit)
	}
}

// Minimal marks those hints as preferred that have the fewest nodes with which the
// request could be met on an idle machine.
func Minimal(hints []Hint, least int) []Hint {
	for i := range hints {
		hints[i].Preferred = hints[i].Nodes.Count() == least
	}
	return hints
}
