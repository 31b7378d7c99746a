package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"knarr.dev/knarr/datapath/plan"
	"knarr.dev/knarr/datapath/spec"
)

// Addresses cross this file as 16 bytes in network order, IPv4 mapped; ports in network order.

func toWords(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func fromWords(w [4]uint32) netip.Addr {
	var b [16]byte
	for i := range w {
		binary.NativeEndian.PutUint32(b[4*i:], w[i])
	}
	return netip.AddrFrom16(b).Unmap()
}

func swap(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// toEndpoint maps the invalid address, which stands for nobody, to zero.
func toEndpoint(a netip.AddrPort) serviceEndpoint {
	if !a.IsValid() {
		return serviceEndpoint{}
	}
	return serviceEndpoint{Addr: toWords(a.Addr()), Port: swap(a.Port())}
}

func fromEndpoint(e serviceEndpoint) netip.AddrPort {
	if e == (serviceEndpoint{}) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(fromWords(e.Addr), swap(e.Port))
}

func toFrontend(f plan.Frontend) serviceFrontend {
	return serviceFrontend{Addr: toWords(f.Addr), Port: swap(f.Port), Proto: uint8(f.Protocol)}
}

func toSlot(s plan.Slot) serviceSlot {
	return serviceSlot{Pool: s.Pool, Generation: s.Generation, Index: s.Index}
}

func toMember(m plan.Member) serviceMember {
	return serviceMember{Pool: m.Pool, Backend: toEndpoint(m.Backend)}
}

// Read returns what the maps hold.
func (k *Kernel) Read() (plan.Image, error) {
	image := plan.NewImage()
	var (
		f  serviceFrontend
		t  serviceTarget
		s  serviceSlot
		e  serviceEndpoint
		m  serviceMember
		ns []uint64
	)
	it := k.maps.Services.Iterate()
	for it.Next(&f, &t) {
		image.Frontends[plan.Frontend{Addr: fromWords(f.Addr), Port: swap(f.Port), Protocol: spec.Protocol(f.Proto)}] =
			plan.Target{Pool: t.Pool, Generation: t.Generation, Count: t.Count, Affinity: t.Affinity}
	}
	err := it.Err()
	it = k.maps.Backends.Iterate()
	for it.Next(&s, &e) {
		image.Slots[plan.Slot{Pool: s.Pool, Generation: s.Generation, Index: s.Index}] = fromEndpoint(e)
	}
	err = errors.Join(err, it.Err())
	it = k.maps.Members.Iterate()
	for it.Next(&m, &ns) {
		image.Members[plan.Member{Pool: m.Pool, Backend: fromEndpoint(m.Backend)}] = struct{}{}
	}
	if err = errors.Join(err, it.Err()); err != nil {
		return plan.Image{}, fmt.Errorf("reading the service maps: %w", err)
	}
	return image, nil
}

// Apply carries out the changes in their order and returns when the kernel has them all. After an error the maps hold
// some of the changes: Read tells which.
func (k *Kernel) Apply(c plan.Changes) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("counting CPUs: %w", err)
	}
	zero := make([]uint64, cpus)
	steps := []error{
		put(k.maps.Members, c.PutMembers, toMember, func(plan.Member) []uint64 { return zero }),
	}
	steps = append(steps,
		put(k.maps.Backends, c.PutSlots, func(e plan.SlotEntry) serviceSlot { return toSlot(e.Slot) },
			func(e plan.SlotEntry) serviceEndpoint { return toEndpoint(e.Backend) }))
	if err := errors.Join(steps...); err != nil {
		return fmt.Errorf("writing backends: %w", err)
	}
	err = put(k.maps.Services, c.PutFrontends,
		func(e plan.FrontendEntry) serviceFrontend { return toFrontend(e.Frontend) },
		func(e plan.FrontendEntry) serviceTarget {
			t := e.Target
			return serviceTarget{Pool: t.Pool, Generation: t.Generation, Count: t.Count, Affinity: t.Affinity}
		})
	if err != nil {
		return fmt.Errorf("writing services: %w", err)
	}
	err = errors.Join(
		remove(k.maps.Services, c.DeleteFrontends, toFrontend),
		remove(k.maps.Backends, c.DeleteSlots, toSlot),
		remove(k.maps.Members, c.DeleteMembers, toMember))
	if err != nil {
		return fmt.Errorf("deleting old service entries: %w", err)
	}
	return nil
}

// batchFrom is the number of entries from which one system call for all pays.
const batchFrom = 8

// put writes entries, in one call where the kernel can.
func put[E, K, V any](m *ebpf.Map, entries []E, key func(E) K, value func(E) V) error {
	if len(entries) >= batchFrom && m.Type() != ebpf.PerCPUHash {
		keys, values := make([]K, len(entries)), make([]V, len(entries))
		for i, e := range entries {
			keys[i], values[i] = key(e), value(e)
		}
		_, err := m.BatchUpdate(keys, values, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	for _, e := range entries {
		k, v := key(e), value(e)
		if err := m.Put(&k, v); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes entries; those that are gone already are fine.
func remove[E, K any](m *ebpf.Map, entries []E, key func(E) K) error {
	for _, e := range entries {
		k := key(e)
		if err := m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

// SetNodes makes the addresses those at which node ports answer.
func (k *Kernel) SetNodes(addrs []netip.Addr) error {
	want := make(map[serviceNode]struct{}, len(addrs))
	for _, a := range addrs {
		n := serviceNode{Addr: toWords(a)}
		want[n] = struct{}{}
		if err := k.maps.Nodes.Put(&n, uint8(1)); err != nil {
			return fmt.Errorf("adding node address %s: %w", a, err)
		}
	}
	var n serviceNode
	var v uint8
	var gone []serviceNode
	it := k.maps.Nodes.Iterate()
	for it.Next(&n, &v) {
		if _, ok := want[n]; !ok {
			gone = append(gone, n)
		}
	}
	if err := errors.Join(it.Err(), remove(k.maps.Nodes, gone, func(n serviceNode) serviceNode { return n })); err != nil {
		return fmt.Errorf("removing old node addresses: %w", err)
	}
	return nil
}

// Counts returns the connections that each member was given, those of the zero backend being refusals.
func (k *Kernel) Counts() (map[plan.Member]uint64, error) {
	counts := map[plan.Member]uint64{}
	var m serviceMember
	var perCPU []uint64
	it := k.maps.Members.Iterate()
	for it.Next(&m, &perCPU) {
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		counts[plan.Member{Pool: m.Pool, Backend: fromEndpoint(m.Backend)}] = sum
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("reading connection counters: %w", err)
	}
	return counts, nil
}
