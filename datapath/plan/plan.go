// Package plan computes which entries of the kernel's service maps have to change, and in which order, so that every
// connection made meanwhile finds a complete set of backends. It is pure: values in, values out.
//
// A pool is the set of backends that some frontends share. Its id is a hash of its name, so it survives restarts
// without being stored. A pool's backends sit in numbered slots of a generation; a generation never changes once a
// frontend points at it. A change is therefore: write members and the slots of a new generation, flip the frontends,
// delete what nobody points at.
package plan

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"knarr.dev/knarr/datapath/spec"
)

// Frontend is an address that clients dial. The unspecified address of a family stands for all addresses of the node.
type Frontend struct {
	Addr     netip.Addr
	Port     uint16
	Protocol spec.Protocol
}

// Target is what a frontend points at. Affinity counts seconds, zero for none.
type Target struct {
	Pool       uint64
	Generation uint32
	Count      uint32
	Affinity   uint32
}

// Slot is the place of one backend.
type Slot struct {
	Pool       uint64
	Generation uint32
	Index      uint32
}

// Member says that a backend belongs to a pool, in whatever slot. The zero backend belongs to pools without backends,
// where it counts refused connections.
type Member struct {
	Pool    uint64
	Backend netip.AddrPort
}

// Image is what the kernel's maps hold.
type Image struct {
	Frontends map[Frontend]Target
	Slots     map[Slot]netip.AddrPort
	Members   map[Member]struct{}
}

// NewImage returns an image of empty maps.
func NewImage() Image {
	return Image{map[Frontend]Target{}, map[Slot]netip.AddrPort{}, map[Member]struct{}{}}
}

// FrontendEntry is a frontend to write.
type FrontendEntry struct {
	Frontend Frontend
	Target   Target
}

// SlotEntry is a slot to write.
type SlotEntry struct {
	Slot    Slot
	Backend netip.AddrPort
}

// Changes are to be applied in the order of the fields. Order inside one field does not matter.
type Changes struct {
	PutMembers      []Member
	PutSlots        []SlotEntry
	PutFrontends    []FrontendEntry
	DeleteFrontends []Frontend
	DeleteSlots     []Slot
	DeleteMembers   []Member

	// External says that a service which clients outside the cluster may reach was added, changed or removed.
	External bool
}

// Empty reports whether nothing has to be done to the maps.
func (c *Changes) Empty() bool {
	return len(c.PutMembers)+len(c.PutSlots)+len(c.PutFrontends)+
		len(c.DeleteFrontends)+len(c.DeleteSlots)+len(c.DeleteMembers) == 0
}

// Apply carries the changes out on an image.
func (c *Changes) Apply(m Image) {
	for _, e := range c.PutMembers {
		m.Members[e] = struct{}{}
	}
	for _, e := range c.PutSlots {
		m.Slots[e.Slot] = e.Backend
	}
	for _, e := range c.PutFrontends {
		m.Frontends[e.Frontend] = e.Target
	}
	for _, e := range c.DeleteFrontends {
		delete(m.Frontends, e)
	}
	for _, e := range c.DeleteSlots {
		delete(m.Slots, e)
	}
	for _, e := range c.DeleteMembers {
		delete(m.Members, e)
	}
}

// scope tells the pools of one service apart.
type scope struct {
	local bool // only backends of this node
	v6    bool
}

// poolID names a pool for good. 64 bits over a cluster's few ten thousand pools: a collision is not to be expected.
func poolID(k spec.Key, s scope) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s/%s/%d/%t/%t", k.Namespace, k.Name, k.PortName, k.Protocol, s.local, s.v6)
	return h.Sum64()
}

// service is a desired service, compiled.
type service struct {
	spec   spec.Service
	round  uint64
	claims map[Frontend]Target // generation and count still open
	pools  map[uint64][]netip.AddrPort
}

// compile works out which frontends the service claims and which pools stand behind them.
func compile(s spec.Service) *service {
	c := &service{spec: s, claims: map[Frontend]Target{}, pools: map[uint64][]netip.AddrPort{}}
	claim := func(addr netip.Addr, port uint16, local bool) {
		sc := scope{local: local, v6: addr.Is6()}
		id := poolID(s.Key(), sc)
		if _, ok := c.pools[id]; !ok {
			c.pools[id] = members(s.Backends, sc)
		}
		f := Frontend{addr, port, s.Protocol}
		if _, ok := c.claims[f]; !ok {
			c.claims[f] = Target{Pool: id, Affinity: uint32(s.Affinity.Seconds())}
		}
	}
	var v4, v6 bool
	for _, ip := range s.IPs {
		v4, v6 = v4 || ip.Is4(), v6 || ip.Is6()
		claim(ip, s.Port, s.InternalLocal)
	}
	for _, ip := range s.ExternalIPs {
		claim(ip, s.Port, false)
	}
	if s.NodePort != 0 {
		if v4 || !v6 {
			claim(netip.IPv4Unspecified(), s.NodePort, false)
		}
		if v6 {
			claim(netip.IPv6Unspecified(), s.NodePort, false)
		}
	}
	return c
}

// members picks a pool's backends, sorted and without duplicates.
func members(all []spec.Backend, sc scope) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range all {
		if b.Addr.Addr().Is6() == sc.v6 && (b.Local || !sc.local) {
			out = append(out, b.Addr)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// pool is what the maps hold of one pool.
type pool struct {
	generation uint32
	backends   []netip.AddrPort
	members    map[netip.AddrPort]struct{}
	slots      []Slot // all that exist, of every generation
	broken     bool   // slots do not form one whole generation
}

// Planner knows what the maps hold and what was last asked for. It is not safe for concurrent use.
type Planner struct {
	services  map[spec.Key]*service
	rejected  map[spec.Key]rejection
	claimants map[Frontend][]spec.Key // sorted; the first has the frontend
	installed map[Frontend]Target
	pools     map[uint64]*pool
	round     uint64
	swept     bool // leftovers of an adopted image are gone
}

// rejection remembers why a service is not served, so that it is reported once.
type rejection struct {
	spec  spec.Service
	round uint64
}

// New starts from what the maps hold: an empty image, or one left by an earlier process, possibly one that died half way.
func New(m Image) *Planner {
	p := &Planner{
		services:  map[spec.Key]*service{},
		rejected:  map[spec.Key]rejection{},
		claimants: map[Frontend][]spec.Key{},
		installed: make(map[Frontend]Target, len(m.Frontends)),
		pools:     map[uint64]*pool{},
	}
	for f, t := range m.Frontends {
		p.installed[f] = t
		p.pool(t.Pool).generation = max(p.pool(t.Pool).generation, t.Generation)
	}
	for s := range m.Slots {
		q := p.pool(s.Pool)
		q.generation = max(q.generation, s.Generation)
		q.slots = append(q.slots, s)
	}
	for e := range m.Members {
		p.pool(e.Pool).members[e.Backend] = struct{}{}
	}
	for _, q := range p.pools {
		q.backends = make([]netip.AddrPort, len(q.slots))
		for _, s := range q.slots {
			if s.Generation != q.generation || int(s.Index) >= len(q.slots) {
				q.broken = true
				break
			}
			q.backends[s.Index] = m.Slots[s]
		}
	}
	return p
}

func (p *Planner) pool(id uint64) *pool {
	q := p.pools[id]
	if q == nil {
		q = &pool{members: map[netip.AddrPort]struct{}{}}
		p.pools[id] = q
	}
	return q
}

// Plan returns the changes that lead to the state and takes them as applied. A caller that could not apply them all
// starts over with New. Services that cannot be served are left out; those newly found so are named in the error, the
// changes are valid nevertheless.
func (p *Planner) Plan(s spec.State) (Changes, error) {
	p.round++
	var c Changes
	var errs []error
	var changed []*service
	touched := map[Frontend]struct{}{} // whose owner or target may be another now
	seen := 0
	for i := range s.Services {
		want := &s.Services[i]
		key := want.Key()
		old := p.services[key]
		if old != nil && old.round != p.round && old.spec.Equal(want) {
			old.round = p.round
			seen++
			continue
		}
		if r, ok := p.rejected[key]; ok && old == nil && r.spec.Equal(want) {
			p.rejected[key] = rejection{*want, p.round}
			continue
		}
		err := want.Validate()
		if err == nil && old != nil && old.round == p.round {
			err = fmt.Errorf("service %s: given twice", key)
		}
		if err != nil {
			errs = append(errs, err)
			p.rejected[key] = rejection{*want, p.round}
			continue
		}
		next := compile(*want)
		next.round = p.round
		seen++
		changed = append(changed, next)
		// Entered at once, so that a second service of this key is noticed.
		if old != nil {
			c.External = c.External || old.spec.External()
			p.release(old, next, &c, touched)
		}
		p.services[key] = next
	}
	for key, r := range p.rejected {
		if r.round != p.round {
			delete(p.rejected, key)
		}
	}

	if seen != len(p.services) {
		for key, old := range p.services {
			if old.round != p.round {
				delete(p.services, key)
				c.External = c.External || old.spec.External()
				p.release(old, nil, &c, touched)
			}
		}
	}
	for _, next := range changed {
		c.External = c.External || next.spec.External()
		for f := range next.claims {
			p.claim(f, next.spec.Key())
			touched[f] = struct{}{}
		}
		for id, backends := range next.pools {
			p.fill(id, backends, &c)
		}
	}
	for f := range touched {
		p.point(f, &c)
	}
	if !p.swept {
		p.sweep(&c)
	}
	return c, errors.Join(errs...)
}

// Owner returns the service that has the frontend.
func (p *Planner) Owner(f Frontend) (spec.Key, bool) {
	if k := p.claimants[f]; len(k) > 0 {
		return k[0], true
	}
	return spec.Key{}, false
}

// External returns the services that clients outside the cluster may reach, ordered by key.
func (p *Planner) External() []spec.Service {
	var out []spec.Service
	for _, s := range p.services {
		if s.spec.External() {
			out = append(out, s.spec)
		}
	}
	slices.SortFunc(out, func(a, b spec.Service) int { return a.Key().Compare(b.Key()) })
	return out
}

// Pools calls yield for every pool of every service, for statistics.
func (p *Planner) Pools(yield func(spec.Key, uint64)) {
	for key, s := range p.services {
		for id := range s.pools {
			yield(key, id)
		}
	}
}
