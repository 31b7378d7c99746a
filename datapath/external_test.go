package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"knarr.dev/knarr/datapath/spec"
)

const (
	nodeAddr    = "10.213.0.1"
	outsideAddr = "10.213.0.2"
)

// outside is another machine, joined to the node by a link; the node's default route leads there.
func outside(t testing.TB) testNS {
	t.Helper()
	ns := newNS(t)
	ns.world = true
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.h)),
	}
	must(netlink.LinkAdd(link))
	t.Cleanup(func() { must(netlink.LinkDel(link)) })
	up := func(h *netlink.Handle, name, addr string) netlink.Link {
		l, err := h.LinkByName(name)
		must(err)
		a, err := netlink.ParseAddr(addr + "/24")
		must(err)
		must(h.AddrAdd(l, a))
		must(h.LinkSetUp(l))
		return l
	}
	in, err := netlink.NewHandleAt(ns.h)
	must(err)
	defer in.Close()
	here, err := netlink.NewHandle()
	must(err)
	defer here.Close()
	up(in, "eth0", outsideAddr)
	l := up(here, "uplink", nodeAddr)
	must(here.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(outsideAddr)}))
	return ns
}

func TestNodePort(t *testing.T) {
	world := outside(t)
	d := node(t)
	a, b := newPod(t, d, "a"), newPod(t, d, "b")
	a.serve(t, "tcp", 8080, "a")
	world.serve(t, "tcp", 8080, "remote") // stands for a backend on another node
	testNS{}.serve(t, "tcp", 30081, "node")
	svc := tcpService("web", vip, 80, a.backend(8080))
	svc.NodePort = 30080
	svc.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.7")}
	set(t, d, svc)
	if err := addRoute(world, "203.0.113.7", nodeAddr); err != nil {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		what, to string
		from     testNS
		seen     string
	}{
		{"node by loopback", "127.0.0.1:30080", testNS{}, d.Gateway().String()},
		{"node by its address", nodeAddr + ":30080", testNS{}, d.Gateway().String()},
		{"pod by the node's address", nodeAddr + ":30080", b.testNS, b.addr.String()},
		{"pod behind it", nodeAddr + ":30080", a.testNS, a.addr.String()},
		{"another machine", nodeAddr + ":30080", world, outsideAddr},
		{"pod by external address", "203.0.113.7:80", b.testNS, b.addr.String()},
		{"another machine by external address", "203.0.113.7:80", world, outsideAddr},
	} {
		name, seen, err := tc.from.ask(tc.to)
		if err != nil || name != "a" || seen != tc.seen {
			t.Errorf("%s: %q saw %q, %v; want a, %q", tc.what, name, seen, err, tc.seen)
		}
	}
	if _, err := b.dial("tcp4", "127.0.0.1:30080"); err == nil {
		t.Error("a pod's loopback leads to the node port")
	}
	if name, _, err := world.ask(nodeAddr + ":30081"); name != "node" {
		t.Errorf("a port of the node itself: %q, %v", name, err)
	}

	// A backend on another node: the answer has to come back through this one.
	remote := spec.Backend{Addr: netip.MustParseAddrPort(outsideAddr + ":8080")}
	svc.Backends = []spec.Backend{remote}
	set(t, d, svc)
	if name, seen, err := world.ask(nodeAddr + ":30080"); name != "remote" || seen != nodeAddr {
		t.Errorf("remote backend: %q saw %q, %v; want remote, %s", name, seen, err, nodeAddr)
	}
	// Local alone: clients of other machines get the local backend, those of the node any.
	svc.ExternalLocal = true
	svc.Backends = []spec.Backend{remote, a.backend(8080)}
	set(t, d, svc)
	names := map[string]int{}
	for range 20 {
		name, seen, err := world.ask(nodeAddr + ":30080")
		if name != "a" || seen != outsideAddr {
			t.Fatalf("external policy Local: %q saw %q, %v", name, seen, err)
		}
		name, _, _ = b.ask(nodeAddr + ":30080")
		names[name]++
	}
	if names["a"] == 0 || names["remote"] == 0 {
		t.Errorf("external policy Local, from a pod: %v; want both", names)
	}
	set(t, d)
	if _, err := world.dial("tcp4", nodeAddr+":30080"); err == nil {
		t.Error("a removed node port still answers")
	}
}

// A frontend may be the node's loopback alone: other addresses of the node and pods'
// own loopback do not lead there.
func TestLoopbackFrontend(t *testing.T) {
	d := node(t)
	a, b, c := newPod(t, d, "a"), newPod(t, d, "b"), newPod(t, d, "c")
	a.serve(t, "tcp", 8080, "a")
	b.serve(t, "tcp", 8080, "b")
	local, all := tcpService("local", vip, 80, a.backend(8080)), tcpService("all", "10.212.0.11", 80, b.backend(8080))
	local.IPs, local.ExternalIPs, local.Port = nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, 30082
	all.NodePort = 30083
	set(t, d, local, all)
	if name, seen, err := (testNS{}).ask("127.0.0.1:30082"); name != "a" || seen != d.Gateway().String() {
		t.Errorf("node by loopback: %q saw %q, %v", name, seen, err)
	}
	if name, _, err := (testNS{}).ask("127.0.0.1:30083"); name != "b" {
		t.Errorf("a port of all addresses, by loopback: %q, %v", name, err)
	}
	for what, try := range map[string]func() (net.Conn, error){
		"a pod's loopback":             func() (net.Conn, error) { return c.dial("tcp4", "127.0.0.1:30082") },
		"another address of the node":  func() (net.Conn, error) { return (testNS{}).dial("tcp4", d.Gateway().String()+":30082") },
		"the node's, asked from a pod": func() (net.Conn, error) { return c.dial("tcp4", d.Gateway().String()+":30082") },
	} {
		if conn, err := try(); err == nil {
			conn.Close()
			t.Errorf("%s leads to the node's loopback frontend", what)
		}
	}
}

// addRoute sends addr by way of the gateway inside ns.
func addRoute(ns testNS, addr, gw string) error {
	h, err := netlink.NewHandleAt(ns.h)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.RouteAdd(&netlink.Route{Dst: host32(netip.MustParseAddr(addr)), Gw: net.ParseIP(gw)})
}

func TestPodsLeaveAsTheNode(t *testing.T) {
	world := outside(t)
	world.serve(t, "tcp", 8080, "world")
	d := node(t)
	a := newPod(t, d, "a")
	if name, seen, err := a.ask(outsideAddr + ":8080"); name != "world" || seen != nodeAddr {
		t.Errorf("%q saw %q, %v; want world, %s", name, seen, err, nodeAddr)
	}
}

func TestExternalAffinity(t *testing.T) {
	world := outside(t)
	d := node(t)
	svc := tcpService("web", vip, 80)
	svc.NodePort, svc.Affinity = 30080, spec.MaxAffinity
	for _, name := range []string{"a", "b", "c"} {
		p := newPod(t, d, name)
		p.serve(t, "tcp", 8080, name)
		svc.Backends = append(svc.Backends, p.backend(8080))
	}
	set(t, d, svc)
	first, _, err := world.ask(nodeAddr + ":30080")
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if name, _, err := world.ask(nodeAddr + ":30080"); name != first {
			t.Fatalf("%q, %v; want %q each time", name, err, first)
		}
	}
}

// A thousand node ports make a transaction beyond netlink's default limits.
func TestManyNodePorts(t *testing.T) {
	world := outside(t)
	d := node(t)
	a := newPod(t, d, "a")
	a.serve(t, "tcp", 8080, "a")
	services := many(1000)
	for i := range services {
		services[i].NodePort = uint16(30000 + i)
	}
	services[777].Backends = []spec.Backend{a.backend(8080)}
	set(t, d, services...)
	if name, _, err := world.ask(nodeAddr + ":30777"); name != "a" {
		t.Errorf("%q, %v", name, err)
	}
}
