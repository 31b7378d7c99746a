package datapath

import (
	"net/netip"
	"sync"
	"time"
)

// podTable knows who has which address.
type podTable struct {
	mu      sync.Mutex
	alloc   allocator
	byID    map[string]*pod
	leaving map[netip.Addr]*time.Timer // detached, link still there
	closed  bool
}

// pod is an attached pod. Lock its mu before the table's.
type pod struct {
	addr  netip.Addr
	netns string     // path of its network namespace
	mu    sync.Mutex // held while the pod is being connected or detached
	ready bool
	gone  bool
}

func (t *podTable) init(cidr netip.Prefix) {
	t.alloc = newAllocator(cidr)
	t.byID = map[string]*pod{}
	t.leaving = map[netip.Addr]*time.Timer{}
}

// adopt enters a link of an earlier process. It is not ready: Attach goes through all steps once more.
func (t *podTable) adopt(l podLink) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.alloc.take(l.addr)
	t.byID[l.id] = &pod{addr: l.addr, netns: l.netns}
}

func (t *podTable) get(id string) *pod {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

func (t *podTable) list() map[string][]netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string][]netip.Addr, len(t.byID))
	for id, p := range t.byID {
		out[id] = []netip.Addr{p.addr}
	}
	return out
}

func (t *podTable) reserve(id, ns string) (*pod, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byID[id]; p != nil {
		return p, nil
	}
	addr, err := t.alloc.next()
	if err != nil {
		return nil, err
	}
	p := &pod{addr: addr, netns: ns}
	t.byID[id] = p
	return p, nil
}

// release forgets the pod. Its address stays taken until the link is gone.
func (t *podTable) release(id string, d *Datapath) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byID[id]
	if p == nil || t.closed {
		return
	}
	delete(t.byID, id)
	t.leaving[p.addr] = time.AfterFunc(detachGrace, func() { d.expire(p.addr) })
	// The namespace may have died before us; then no event comes.
	if _, err := d.nl.LinkByName(d.linkName(p.addr)); err != nil && isGone(err) {
		t.free(p.addr)
	}
}

// free makes a leaving address available. Call with mu held.
func (t *podTable) free(addr netip.Addr) {
	if timer, ok := t.leaving[addr]; ok {
		timer.Stop()
		delete(t.leaving, addr)
		t.alloc.free(addr)
	}
}

// linkGone is told of every link that the kernel removed.
func (t *podTable) linkGone(name string, d *Datapath) {
	if addr, ok := d.linkAddr(name); ok {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.free(addr)
	}
}

// expire deletes the link of a detached pod whose namespace is still alive.
func (d *Datapath) expire(addr netip.Addr) {
	t := &d.pods
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.leaving[addr]; !ok || t.closed {
		return
	}
	name := d.linkName(addr)
	link, err := d.nl.LinkByName(name)
	if err == nil {
		err = d.nl.LinkDel(link)
	}
	if err != nil && !isGone(err) {
		d.log.Error("deleting the link of a detached pod; trying again", "link", name, "err", err)
		t.leaving[addr] = time.AfterFunc(detachGrace, func() { d.expire(addr) })
		return
	}
	t.free(addr)
}

// netnsOf returns the path of the network namespace of the pod with the address.
func (t *podTable) netnsOf(addr netip.Addr) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.byID {
		if p.addr == addr {
			return p.netns, true
		}
	}
	return "", false
}

func (t *podTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, timer := range t.leaving {
		timer.Stop()
	}
}
