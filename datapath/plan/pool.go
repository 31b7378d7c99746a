package plan

import (
	"net/netip"
	"slices"

	"knarr.dev/knarr/datapath/spec"
)

// release takes back what a service claimed. Pools that its successor uses stay.
func (p *Planner) release(old, next *service, c *Changes, touched map[Frontend]struct{}) {
	key := old.spec.Key()
	for f := range old.claims {
		touched[f] = struct{}{}
		keys := p.claimants[f]
		if i := slices.Index(keys, key); i >= 0 {
			keys = slices.Delete(keys, i, i+1)
		}
		if len(keys) == 0 {
			delete(p.claimants, f)
		} else {
			p.claimants[f] = keys
		}
	}
	for id := range old.pools {
		if next != nil {
			if _, ok := next.pools[id]; ok {
				continue
			}
		}
		p.drop(id, c)
	}
}

// claim enters a service among those that want the frontend.
func (p *Planner) claim(f Frontend, key spec.Key) {
	keys := p.claimants[f]
	if i, found := slices.BinarySearchFunc(keys, key, spec.Key.Compare); !found {
		p.claimants[f] = slices.Insert(keys, i, key)
	}
}

// drop removes a pool.
func (p *Planner) drop(id uint64, c *Changes) {
	q := p.pools[id]
	if q == nil {
		return
	}
	c.DeleteSlots = append(c.DeleteSlots, q.slots...)
	for b := range q.members {
		c.DeleteMembers = append(c.DeleteMembers, Member{id, b})
	}
	delete(p.pools, id)
}

// fill gives a pool its backends: a new generation, unless it holds exactly these.
func (p *Planner) fill(id uint64, backends []netip.AddrPort, c *Changes) {
	q := p.pool(id)
	want := backends
	if len(want) == 0 {
		want = []netip.AddrPort{{}}
	}
	for _, b := range want {
		if _, ok := q.members[b]; !ok {
			q.members[b] = struct{}{}
			c.PutMembers = append(c.PutMembers, Member{id, b})
		}
	}
	if len(q.members) > len(want) {
		for b := range q.members {
			if !slices.Contains(want, b) {
				delete(q.members, b)
				c.DeleteMembers = append(c.DeleteMembers, Member{id, b})
			}
		}
	}
	if !q.broken && q.generation != 0 && slices.Equal(q.backends, backends) {
		return
	}
	c.DeleteSlots = append(c.DeleteSlots, q.slots...)
	q.generation++
	q.broken = false
	q.backends = backends
	q.slots = make([]Slot, len(backends))
	for i, b := range backends {
		q.slots[i] = Slot{id, q.generation, uint32(i)}
		c.PutSlots = append(c.PutSlots, SlotEntry{q.slots[i], b})
	}
}

// point makes the frontend lead to the pool of whoever owns it now.
func (p *Planner) point(f Frontend, c *Changes) {
	have, installed := p.installed[f]
	key, owned := p.Owner(f)
	if !owned {
		if installed {
			delete(p.installed, f)
			c.DeleteFrontends = append(c.DeleteFrontends, f)
		}
		return
	}
	want := p.services[key].claims[f]
	q := p.pools[want.Pool]
	want.Generation, want.Count = q.generation, uint32(len(q.backends))
	if !installed || have != want {
		p.installed[f] = want
		c.PutFrontends = append(c.PutFrontends, FrontendEntry{f, want})
	}
}

// sweep removes what an adopted image holds for nobody.
func (p *Planner) sweep(c *Changes) {
	p.swept = true
	for f := range p.installed {
		if _, ok := p.Owner(f); !ok {
			p.point(f, c)
		}
	}
	owned := make(map[uint64]struct{}, len(p.pools))
	for _, s := range p.services {
		for id := range s.pools {
			owned[id] = struct{}{}
		}
	}
	for id := range p.pools {
		if _, ok := owned[id]; !ok {
			p.drop(id, c)
		}
	}
}
