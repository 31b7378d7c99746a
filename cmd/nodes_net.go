package cmd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	vishns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Link addresses of both ends; neighbours are fixed, so nothing waits for ARP.
var (
	machineMAC = net.HardwareAddr{0x0a, 0x58, 0, 0, 0, 2}
	nodeMAC    = net.HardwareAddr{0x0a, 0x58, 0, 0, 0, 3}
)

// defaultMTU is Ethernet's.
const defaultMTU = 1500

// connect links the node's namespace with the machine's. The machine routes the
// node's pod range into it, and is its way to everything else; the node's address
// is the first of the range, the machine's the first node's gateway. What is there
// already, from before a restart, stays.
func (n *furtherNode) connect(gateway netip.Addr) error {
	machine, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer machine.Close()
	node, err := netlink.NewHandleAt(vishns.NsHandle(int(n.netns.Fd())))
	if err != nil {
		return fmt.Errorf("open netlink of the node: %w", err)
	}
	defer node.Close()
	if err := n.pair(machine, node); err != nil {
		return err
	}
	ours, err := machine.LinkByName(n.link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", n.link, err)
	}
	theirs, err := node.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find the node's end: %w", err)
	}
	lo, err := node.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the node's loopback link: %w", err)
	}
	addr, pods := netip.MustParseAddr(n.cfg.Node.IP), netip.MustParsePrefix(n.cfg.Network.NodePodCIDR)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"set the machine's end up", func() error { return machine.LinkSetUp(ours) }},
		{"give the machine's end its address", func() error { return machine.AddrReplace(ours, &netlink.Addr{IPNet: host32(gateway)}) }},
		{"tell the machine the node's link address", func() error { return machine.NeighSet(neighbour(ours, addr, nodeMAC)) }},
		{"set the node's loopback link up", func() error { return node.LinkSetUp(lo) }},
		{"set the node's end up", func() error { return node.LinkSetUp(theirs) }},
		{"give the node its address", func() error { return node.AddrReplace(theirs, &netlink.Addr{IPNet: host32(addr)}) }},
		{"tell the node the machine's link address", func() error { return node.NeighSet(neighbour(theirs, gateway, machineMAC)) }},
		{"route the node's pods", func() error {
			return machine.RouteReplace(&netlink.Route{LinkIndex: ours.Attrs().Index, Dst: ipNet(pods), Gw: addr.AsSlice(), Src: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		}},
		{"route the rest of the node's packets", func() error {
			return node.RouteReplace(&netlink.Route{LinkIndex: theirs.Attrs().Index, Gw: gateway.AsSlice(), Src: addr.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		}},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// pair makes the two ends, unless they are there. An end whose other one is in a
// namespace of the past is replaced.
func (n *furtherNode) pair(machine, node *netlink.Handle) error {
	old, err := machine.LinkByName(n.link)
	if err == nil {
		if _, err := node.LinkByName("eth0"); err == nil {
			return nil
		}
		if err := machine.LinkDel(old); err != nil {
			return fmt.Errorf("delete the stale link %s: %w", n.link, err)
		}
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: n.link, MTU: machineMTU(machine), HardwareAddr: machineMAC},
		PeerName:  "eth0", PeerHardwareAddr: nodeMAC, PeerNamespace: netlink.NsFd(int(n.netns.Fd())),
	}
	if err := machine.LinkAdd(veth); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make link %s: %w", n.link, err)
	}
	return nil
}

// machineMTU is that of the link with the default route.
func machineMTU(h *netlink.Handle) int {
	routes, err := h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return defaultMTU
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			if l, err := h.LinkByIndex(r.LinkIndex); err == nil {
				return l.Attrs().MTU
			}
		}
	}
	return defaultMTU
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func host32(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func neighbour(l netlink.Link, ip netip.Addr, hw net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: hw}
}
