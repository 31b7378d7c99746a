package datapath

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// detachGrace is how long a detached pod's namespace may take to die before its link is deleted. Deleting a link whose
// namespace is about to vanish would make the caller wait for what the kernel does by itself.
const detachGrace = 3 * time.Second

// podLink is the node's end of a pod's veth pair. Its name carries the pod's address, its alias the sandbox and the
// path of its network namespace, so the kernel alone remembers who has what.
type podLink struct {
	link  netlink.Link
	addr  netip.Addr
	id    string
	netns string
}

// linkName is the instance's name and the address in hexadecimal.
func (d *Datapath) linkName(a netip.Addr) string { return d.cfg.Name + hex.EncodeToString(a.AsSlice()) }

// linkAddr is the reverse of linkName.
func (d *Datapath) linkAddr(name string) (netip.Addr, bool) {
	digits, ok := strings.CutPrefix(name, d.cfg.Name)
	if !ok || len(digits) != 8 {
		return netip.Addr{}, false
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(b)
}

// complete lists again when something changed while the kernel was listing: then the
// list may lack what is there.
func complete[T any](list func() ([]T, error)) ([]T, error) {
	for {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}

// podLinks lists the links of this instance.
func (d *Datapath) podLinks() ([]podLink, error) {
	all, err := complete(d.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var out []podLink
	for _, l := range all {
		if addr, ok := d.linkAddr(l.Attrs().Name); ok && l.Type() == "veth" {
			id, ns, _ := strings.Cut(l.Attrs().Alias, " ")
			out = append(out, podLink{l, addr, id, ns})
		}
	}
	return out, nil
}

// mac returns a locally administered address: the same for the node's end of all pairs, the pod's made of its address.
func mac(pod netip.Addr) net.HardwareAddr {
	m := net.HardwareAddr{0x0a, 0x58, 0, 0, 0, 1}
	if pod.IsValid() {
		b := pod.As4()
		copy(m[2:], b[:])
	}
	return m
}

func (d *Datapath) adoptPods() error {
	links, err := d.podLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.id == "" { // the process that made it died before it could note for whom
			if err := d.nl.LinkDel(l.link); err != nil && !isGone(err) {
				return fmt.Errorf("deleting unfinished link %s: %w", l.link.Attrs().Name, err)
			}
			continue
		}
		if !d.cfg.PodCIDR.Contains(l.addr) {
			d.log.Warn("ignoring a link outside the pod network", "link", l.link.Attrs().Name, "network", d.cfg.PodCIDR)
			continue
		}
		d.pods.adopt(l)
	}
	return nil
}

// Attached returns the pods that hold addresses, by sandbox id; after a restart it tells which of them have to be
// detached because their sandboxes are gone.
func (d *Datapath) Attached() map[string][]netip.Addr { return d.pods.list() }

// Attach gives the network namespace at path ns an address, routes and a link eth0, and returns the addresses. The
// same id has the same addresses, also after a restart, until Detach.
func (d *Datapath) Attach(ctx context.Context, id, ns string) ([]netip.Addr, error) {
	if id == "" || strings.ContainsAny(id, " \n") || len(id)+len(ns) > 250 {
		return nil, fmt.Errorf("attaching pod %q: the id must be a word, and with the namespace's path below 250 bytes", id)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for {
		p, err := d.pods.reserve(id, ns)
		if err != nil {
			return nil, fmt.Errorf("attaching pod %s: %w", id, err)
		}
		if addrs, err := d.attach(p, id, ns); err != errDetached {
			return addrs, err
		}
	}
}

// errDetached says that the pod was detached between its reservation and its turn.
var errDetached = errors.New("detached")

func (d *Datapath) attach(p *pod, id, ns string) ([]netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, errDetached
	}
	if !p.ready {
		if err := d.connect(id, p.addr, ns); err != nil {
			p.gone = true
			d.pods.release(id, d)
			return nil, fmt.Errorf("attaching pod %s with address %s to %s: %w", id, p.addr, ns, err)
		}
		p.ready = true
	}
	return []netip.Addr{p.addr}, nil
}

// connect brings the pair up. Every step may have been done before.
func (d *Datapath) connect(id string, addr netip.Addr, path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: d.linkName(addr), MTU: d.mtu(), HardwareAddr: mac(netip.Addr{}), Flags: net.FlagUp,
		},
		PeerName: "eth0", PeerHardwareAddr: mac(addr), PeerNamespace: netlink.NsFd(int(ns)),
	}
	if err := d.nl.LinkAdd(veth); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("creating the link pair: %w", err)
	}
	link, err := d.nl.LinkByName(veth.Name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", veth.Name, err)
	}
	if owner, _, _ := strings.Cut(link.Attrs().Alias, " "); owner == "" {
		if err := d.nl.LinkSetAlias(link, id+" "+path); err != nil {
			return fmt.Errorf("noting the pod in the alias of link %s: %w", veth.Name, err)
		}
	} else if owner != id {
		return fmt.Errorf("link %s belongs to pod %q", veth.Name, owner)
	}
	index := link.Attrs().Index
	if err := d.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting link %s up: %w", veth.Name, err)
	}
	// Neighbours are fixed on both ends, so no packet ever waits for ARP and no sysctl of the node matters.
	if err := d.nl.NeighSet(neighbour(index, addr, mac(addr))); err != nil {
		return fmt.Errorf("adding the pod's link address: %w", err)
	}
	route := &netlink.Route{
		LinkIndex: index, Dst: host32(addr), Src: d.gateway.AsSlice(), Scope: netlink.SCOPE_LINK,
	}
	if err := d.nl.RouteReplace(route); err != nil {
		return fmt.Errorf("adding the route to the pod: %w", err)
	}
	if err := d.configure(ns, addr); err != nil {
		return fmt.Errorf("inside the pod: %w", err)
	}
	return nil
}

// configure sets up the pod's end.
func (d *Datapath) configure(ns netns.NsHandle, addr netip.Addr) error {
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer in.Close()
	lo, err := in.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	eth, err := in.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding eth0: %w", err)
	}
	index := eth.Attrs().Index
	steps := []struct {
		what string
		do   func() error
	}{
		{"setting lo up", func() error { return in.LinkSetUp(lo) }},
		{"adding the address", func() error { return in.AddrReplace(eth, &netlink.Addr{IPNet: host32(addr)}) }},
		{"setting eth0 up", func() error { return in.LinkSetUp(eth) }},
		{"adding the gateway's link address", func() error {
			return in.NeighSet(neighbour(index, d.gateway, mac(netip.Addr{})))
		}},
		{"adding the route to the gateway", func() error {
			return in.RouteReplace(&netlink.Route{LinkIndex: index, Dst: host32(d.gateway), Scope: netlink.SCOPE_LINK})
		}},
		{"adding the default route", func() error {
			return in.RouteReplace(&netlink.Route{LinkIndex: index, Gw: d.gateway.AsSlice()})
		}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

func neighbour(index int, ip netip.Addr, hw net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: hw,
	}
}

// mtu is what leaves the node unfragmented.
func (d *Datapath) mtu() int {
	if d.cfg.MTU != 0 {
		return d.cfg.MTU
	}
	mtu := 0
	routes, _ := d.nl.RouteList(nil, netlink.FAMILY_V4)
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			if l, err := d.nl.LinkByIndex(r.LinkIndex); err == nil {
				mtu = l.Attrs().MTU
			}
		}
	}
	return cmp.Or(mtu, 1500)
}

// Detach takes the pod's address back; it may be called again and for unknown ids. The link vanishes with the pod's
// network namespace, or is deleted where that lives on. The address is given to no other pod before.
func (d *Datapath) Detach(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := d.pods.get(id)
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gone {
		p.gone = true
		d.pods.release(id, d)
	}
	return nil
}
