package datapath

import (
	"fmt"
	"net/netip"
)

// allocator hands out the addresses of a network but the first two (network, gateway) and the last (broadcast). It
// goes round, so that an address just given back rests as long as possible.
type allocator struct {
	cidr netip.Prefix
	last netip.Addr // handed out last
	used map[netip.Addr]struct{}
}

func newAllocator(cidr netip.Prefix) allocator {
	return allocator{cidr: cidr, last: cidr.Addr().Next(), used: map[netip.Addr]struct{}{}}
}

// take marks an address that is in use already.
func (a *allocator) take(addr netip.Addr) {
	a.used[addr] = struct{}{}
	if a.last.Less(addr) {
		a.last = addr
	}
}

func (a *allocator) free(addr netip.Addr) { delete(a.used, addr) }

// next returns an unused address.
func (a *allocator) next() (netip.Addr, error) {
	first := a.cidr.Addr().Next().Next()
	for addr, start := a.last, a.last; ; {
		addr = addr.Next()
		if !a.cidr.Contains(addr) || !a.cidr.Contains(addr.Next()) {
			addr = first
		}
		if _, taken := a.used[addr]; !taken {
			a.used[addr] = struct{}{}
			a.last = addr
			return addr, nil
		}
		if addr == start {
			return netip.Addr{}, fmt.Errorf("all %d addresses of pod network %s are in use; give the node a larger one", len(a.used), a.cidr)
		}
	}
}
