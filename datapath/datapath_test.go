package datapath

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"knarr.dev/knarr/datapath/spec"
)

const vip = "10.212.0.10"

func TestPodsReachEachOtherAndTheNode(t *testing.T) {
	d := node(t)
	a, b := newPod(t, d, "a"), newPod(t, d, "b")
	a.serve(t, "tcp", 8080, "a")
	b.serve(t, "tcp", 8080, "b")
	testNS{}.serve(t, "tcp", 8081, "node")

	for _, tc := range []struct {
		what, to   string
		from       testNS
		name, seen string
	}{
		{"pod to pod", a.addr.String() + ":8080", b.testNS, "a", b.addr.String()},
		{"pod to itself", a.addr.String() + ":8080", a.testNS, "a", a.addr.String()},
		{"pod's loopback", "127.0.0.1:8080", a.testNS, "a", "127.0.0.1"},
		{"node to pod", b.addr.String() + ":8080", testNS{}, "b", d.Gateway().String()},
		{"pod to gateway", d.Gateway().String() + ":8081", a.testNS, "node", a.addr.String()},
	} {
		name, seen, err := tc.from.ask(tc.to)
		if err != nil || name != tc.name || seen != tc.seen {
			t.Errorf("%s: %q saw %q, %v; want %q, %q", tc.what, name, seen, err, tc.name, tc.seen)
		}
	}
}

func TestAttachIsIdempotentAndSurvivesRestart(t *testing.T) {
	cfg := testConfig(t)
	d := open(t, cfg)
	a, b := newPod(t, d, "a"), newPod(t, d, "b")
	again, err := d.Attach(t.Context(), "a", a.path())
	if err != nil || again[0] != a.addr {
		t.Fatalf("second attach: %v, %v; want %v", again, err, a.addr)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, cfg)
	t.Cleanup(func() { destroy(t, d) })
	if got := d.Attached(); len(got) != 2 || got["a"][0] != a.addr || got["b"][0] != b.addr {
		t.Fatalf("after restart %v is attached; want a=%v b=%v", got, a.addr, b.addr)
	}
	again, err = d.Attach(t.Context(), "b", b.path())
	if err != nil || again[0] != b.addr {
		t.Fatalf("attach after restart: %v, %v; want %v", again, err, b.addr)
	}
	if c := newPod(t, d, "c"); c.addr == a.addr || c.addr == b.addr {
		t.Fatalf("address %v given twice", c.addr)
	}
}

func TestDetachRemovesTheLinkOfALivingNamespace(t *testing.T) {
	d := node(t)
	a := newPod(t, d, "a")
	gone := make(chan netlink.LinkUpdate, 16)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(gone, done); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Detach(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	timeout := time.After(2 * detachGrace)
	for {
		select {
		case u := <-gone:
			if u.Header.Type == syscall.RTM_DELLINK && u.Link.Attrs().Name == d.linkName(a.addr) {
				return
			}
		case <-timeout:
			t.Fatal("the link is still there")
		}
	}
}

func TestServiceTCP(t *testing.T) {
	d := node(t)
	a, b := newPod(t, d, "a"), newPod(t, d, "b")
	a.serve(t, "tcp", 8080, "a")
	b.serve(t, "tcp", 8081, "b")
	set(t, d, tcpService("web", vip, 80, a.backend(8080), b.backend(8081)))

	for what, from := range map[string]testNS{"node": {}, "pod behind its own service": a.testNS} {
		names := map[string]int{}
		for range 64 {
			name, _, err := from.ask(vip + ":80")
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			names[name]++
		}
		if names["a"] < 8 || names["b"] < 8 {
			t.Errorf("%s: connections went to %v; want about half each", what, names)
		}
	}

	c, err := a.dial("tcp4", vip+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, _ := c.(*net.TCPConn).SyscallConn()
	var peer syscall.Sockaddr
	_ = raw.Control(func(fd uintptr) { peer, err = syscall.Getpeername(int(fd)) })
	if p, ok := peer.(*syscall.SockaddrInet4); err != nil || !ok || netip.AddrFrom4(p.Addr).String() != vip || p.Port != 80 {
		t.Errorf("getpeername: %+v, %v; want %s:80", peer, err, vip)
	}

	stats, err := d.Stats()
	if err != nil || len(stats) != 1 {
		t.Fatal(stats, err)
	}
	var sum uint64
	for _, n := range stats[0].Backends {
		sum += n
	}
	if sum != 129 || stats[0].Refused != 0 {
		t.Errorf("counted %+v; want 129 connections in all", stats[0])
	}
}

func TestMappedAddressReachesService(t *testing.T) {
	d := node(t)
	a := newPod(t, d, "a")
	a.serve(t, "tcp", 8080, "a")
	set(t, d, tcpService("web", vip, 80, a.backend(8080)))
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	want := netip.AddrFrom16(netip.MustParseAddr(vip).As16())
	if err := syscall.Connect(fd, &syscall.SockaddrInet6{Port: 80, Addr: want.As16()}); err != nil {
		t.Fatal(err)
	}
	peer, err := syscall.Getpeername(fd)
	if p, ok := peer.(*syscall.SockaddrInet6); err != nil || !ok || p.Addr != want.As16() || p.Port != 80 {
		t.Errorf("getpeername: %+v, %v", peer, err)
	}
}

func TestServiceUDP(t *testing.T) {
	d := node(t)
	a, b := newPod(t, d, "a"), newPod(t, d, "b")
	a.serve(t, "udp", 5353, "a")
	svc := tcpService("dns", vip, 53, a.backend(5353))
	svc.Protocol = spec.UDP
	set(t, d, svc)
	to := &net.UDPAddr{IP: net.ParseIP(vip), Port: 53}
	buf := make([]byte, 64)

	c, err := b.dial("udp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	_, _ = c.Write([]byte("?"))
	if n, from, err := c.(*net.UDPConn).ReadFrom(buf); err != nil || string(buf[:n]) != "a" || from.String() != to.String() {
		t.Errorf("connected: %q from %v, %v; want a from %v", buf[:n], from, err, to)
	}

	for _, network := range []string{"udp4", "udp"} { // "udp" is a v6 socket that speaks IPv4
		var pc net.PacketConn
		b.do(func() { pc, err = net.ListenPacket(network, ":0") })
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		_ = pc.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := pc.WriteTo([]byte("?"), to); err != nil {
			t.Fatal(err)
		}
		if n, from, err := pc.ReadFrom(buf); err != nil || string(buf[:n]) != "a" || from.String() != to.String() {
			t.Errorf("unconnected %s: %q from %v, %v; want a from %v", network, buf[:n], from, err, to)
		}
	}
}

func TestRefusals(t *testing.T) {
	outside(t) // packets to unknown addresses have somewhere to go
	d := node(t)
	a := newPod(t, d, "a")
	local := tcpService("remote", "10.212.0.12", 80, spec.Backend{Addr: netip.MustParseAddrPort("10.211.9.9:80")})
	local.InternalLocal = true
	set(t, d, tcpService("empty", vip, 80), local)
	for what, to := range map[string]string{
		"no backends": vip + ":80", "no local backends": "10.212.0.12:80",
		"port that is not served": vip + ":81", "address that is not served": "10.212.3.4:80",
	} {
		start := time.Now()
		_, err := a.dial("tcp4", to)
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) > time.Second {
			t.Errorf("%s: %v after %v; want connection refused at once", what, err, time.Since(start))
		}
	}
	stats, err := d.Stats()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stats {
		if s.Refused != 1 {
			t.Errorf("%v: %d refusals counted; want 1", s.Service, s.Refused)
		}
	}
}

func TestAffinity(t *testing.T) {
	d := node(t)
	pods := map[string]testPod{"a": newPod(t, d, "a"), "b": newPod(t, d, "b"), "c": newPod(t, d, "c")}
	svc := tcpService("web", vip, 80)
	svc.Affinity = time.Hour
	for name, p := range pods {
		p.serve(t, "tcp", 8080, name)
		svc.Backends = append(svc.Backends, p.backend(8080))
	}
	set(t, d, svc)
	client := newPod(t, d, "client")
	first, _, err := client.ask(vip + ":80")
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if name, _, err := client.ask(vip + ":80"); name != first {
			t.Fatalf("%q answered, %v; want %q each time", name, err, first)
		}
	}
	// Another backend goes: the client stays. Its own goes: it moves.
	var without []spec.Backend
	for name, p := range pods {
		if name == first || len(without) == 0 {
			without = append(without, p.backend(8080))
		}
	}
	svc.Backends = []spec.Backend{pods[first].backend(8080)}
	for _, b := range without {
		if b != svc.Backends[0] {
			svc.Backends = append(svc.Backends, b)
		}
	}
	set(t, d, svc)
	if name, _, err := client.ask(vip + ":80"); name != first {
		t.Errorf("after another backend left, %q answered, %v; want %q", name, err, first)
	}
	if len(svc.Backends) < 2 {
		for name, p := range pods {
			if name != first {
				svc.Backends = append(svc.Backends, p.backend(8080))
				break
			}
		}
	}
	svc.Backends = svc.Backends[1:]
	set(t, d, svc)
	if name, _, err := client.ask(vip + ":80"); err != nil || name == first {
		t.Errorf("after its backend left, %q answered, %v", name, err)
	}
}

func TestSetPrunes(t *testing.T) {
	d := node(t)
	a := newPod(t, d, "a")
	a.serve(t, "tcp", 8080, "a")
	set(t, d, tcpService("one", vip, 80, a.backend(8080)), tcpService("two", "10.212.0.11", 80, a.backend(8080)))
	set(t, d, tcpService("two", "10.212.0.11", 80, a.backend(8080)))
	if _, err := a.dial("tcp4", vip+":80"); err == nil {
		t.Error("a removed service still answers")
	}
	if name, _, err := a.ask("10.212.0.11:80"); name != "a" {
		t.Errorf("the service that stayed: %q, %v", name, err)
	}
	set(t, d)
	image, err := d.kernel.Read()
	if err != nil || len(image.Frontends)+len(image.Slots)+len(image.Members) != 0 {
		t.Errorf("the maps still hold %+v, %v", image, err)
	}
}

func TestConnections(t *testing.T) {
	d := node(t)
	a, b := newPod(t, d, "a"), newPod(t, d, "b")
	var l net.Listener
	var err error
	a.do(func() { l, err = net.Listen("tcp4", ":8080") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if n, _, err := d.Connections(t.Context(), a.addr); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	start := time.Now()
	c, err := b.dial("tcp4", a.addr.String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n, last, err := d.Connections(t.Context(), a.addr)
	if n != 1 || err != nil || last.Before(start.Add(-time.Second)) || last.After(time.Now()) {
		t.Errorf("one connection open: %d, %v, %v", n, last, err)
	}
	if n, _, err := d.Connections(t.Context(), b.addr); n != 0 || err != nil {
		t.Errorf("the client's side: %d, %v; want 0", n, err)
	}
	c.Close()
	_, _ = s.Read(make([]byte, 1)) // the end has arrived
	if n, _, err := d.Connections(t.Context(), a.addr); n != 0 || err != nil {
		t.Errorf("closed: %d, %v", n, err)
	}
	if _, _, err := d.Connections(context.Background(), netip.MustParseAddr("10.211.0.99")); err == nil {
		t.Error("an unknown pod: no error")
	}
}
