package datapath

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"knarr.dev/knarr/datapath/spec"
)

// hammer connects to the address without pause until stop and counts; every failure is reported.
func hammer(t testing.TB, from testNS, addr string) (n *atomic.Int64, stop func()) {
	n = new(atomic.Int64)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			from.do(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if name, _, err := (testNS{}).ask(addr); err != nil || name == "" {
						t.Errorf("connection %d: %q, %v", n.Load(), name, err)
						return
					}
					n.Add(1)
				}
			})
		})
	}
	return n, func() {
		close(done)
		wg.Wait()
	}
}

func TestNoConnectionFailsWhileBackendsChange(t *testing.T) {
	d := node(t)
	var all []spec.Backend
	for i := range 4 {
		p := newPod(t, d, fmt.Sprint("p", i))
		p.serve(t, "tcp", 8080, p.id)
		all = append(all, p.backend(8080))
	}
	client := newPod(t, d, "client")
	svc := tcpService("web", vip, 80, all...)
	set(t, d, svc)
	n, stop := hammer(t, client.testNS, vip+":80")
	i := 0
	for ; !t.Failed() && (i < 200 || n.Load() < 3000); i++ {
		svc.Backends = []spec.Backend{all[i%4], all[(i+1+i/4%3)%4]}
		if i%2 == 0 {
			svc.Backends = svc.Backends[:1]
		}
		set(t, d, svc)
	}
	stop()
	t.Logf("%d connections during %d changes", n.Load(), i)
}

func TestRestartInterruptsNothing(t *testing.T) {
	cfg := testConfig(t)
	d := open(t, cfg)
	a := newPod(t, d, "a")
	a.serve(t, "tcp", 8080, "a")
	client := newPod(t, d, "client")
	svc := tcpService("web", vip, 80, a.backend(8080))
	gone := tcpService("gone", "10.212.0.11", 80, a.backend(8080))
	set(t, d, svc, gone)
	n, stop := hammer(t, client.testNS, vip+":80")
	for range 3 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := client.ask(vip + ":80"); err != nil {
			t.Error("while nobody runs:", err)
		}
		d = open(t, cfg)
		set(t, d, svc) // what was removed meanwhile goes, what stayed is not touched
	}
	stop()
	t.Logf("%d connections during 3 restarts", n.Load())
	if _, err := client.dial("tcp4", "10.212.0.11:80"); err == nil {
		t.Error("a service removed while nobody ran still answers")
	}
	image, err := d.kernel.Read()
	if err != nil {
		t.Fatal(err)
	}
	for f, target := range image.Frontends {
		if target.Generation != 1 {
			t.Errorf("%v is at generation %d: adoption rewrote what had not changed", f, target.Generation)
		}
	}
	destroy(t, d)
}

// traces lists everything that a datapath could leave on the node.
func traces(t *testing.T) string {
	t.Helper()
	var out []string
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	links, err := netlink.LinkList()
	must(err)
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	must(err)
	for _, a := range addrs {
		out = append(out, "addr "+a.String())
	}
	for _, table := range []int{254, 255} {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		must(err)
		for _, r := range routes {
			out = append(out, "route "+r.String())
		}
	}
	c, err := nftables.New()
	must(err)
	tables, err := c.ListTables()
	must(err)
	for _, x := range tables {
		out = append(out, "nft "+x.Name)
	}
	forward, err := os.ReadFile(forwardSysctl)
	must(err)
	out = append(out, "ip_forward "+strings.TrimSpace(string(forward)))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - bpf ") {
			out = append(out, "mount "+line)
		}
	}
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg,
		ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
		ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
	} {
		cgroup, err := os.Open(nodeCgroup())
		must(err)
		got, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: at})
		cgroup.Close()
		must(err)
		for _, p := range got.Programs {
			out = append(out, fmt.Sprint("program ", p.ID))
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

func TestDestroyLeavesNothing(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	before := traces(t)
	cfg := testConfig(t)
	d := open(t, cfg)
	newPod(t, d, "a")
	b := newPod(t, d, "b")
	svc := tcpService("web", vip, 80, b.backend(80))
	svc.NodePort = 30080
	set(t, d, svc)
	if during := traces(t); during == before {
		t.Fatal("the comparison does not see the datapath")
	}
	destroy(t, d)
	if after := traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if left, _ := filepath.Glob(cfg.Run + "/*"); len(left) > 0 {
		t.Errorf("left in the run directory: %v", left)
	}
}

func TestInstancesSideBySide(t *testing.T) {
	d := node(t)
	cfg := testConfig(t)
	cfg.Name, cfg.PodCIDR = "ku", netip.MustParsePrefix("10.211.1.0/24")
	cfg.ServiceCIDR = netip.MustParsePrefix("10.214.0.0/16")
	e := open(t, cfg)
	a, b := newPod(t, d, "a"), newPod(t, e, "a")
	a.serve(t, "tcp", 8080, "first")
	b.serve(t, "tcp", 8080, "second")
	set(t, d, tcpService("web", vip, 80, a.backend(8080)))
	set(t, e, tcpService("web", "10.214.0.10", 80, b.backend(8080)))
	for addr, want := range map[string]string{vip + ":80": "first", "10.214.0.10:80": "second"} {
		for _, from := range []testPod{a, b} {
			if name, _, err := from.ask(addr); name != want {
				t.Errorf("%s: %q, %v; want %s", addr, name, err, want)
			}
		}
	}
	destroy(t, e)
	c := newPod(t, d, "c")
	if name, _, err := c.ask(vip + ":80"); name != "first" {
		t.Errorf("after the other's end: %q, %v", name, err)
	}
}

func TestSetRetiresEarlierVersions(t *testing.T) {
	d := node(t)
	old := filepath.Join(d.pinDir(), "v0")
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	set(t, d)
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("pins of an earlier version: %v; want none", err)
	}
}

func TestDetachedPodCanReturn(t *testing.T) {
	d := node(t)
	a := newPod(t, d, "a")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := d.Detach(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b := newPod(t, d, "a")
	if b.addr == a.addr {
		t.Errorf("address %v given again while its link lives", a.addr)
	}
	b.serve(t, "tcp", 8080, "b")
	if name, _, err := (testNS{}).ask(b.addr.String() + ":8080"); name != "b" {
		t.Errorf("%q, %v", name, err)
	}
}

func BenchmarkAttach(b *testing.B) {
	d := node(b)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		ns := newNS(b)
		b.StartTimer()
		id := fmt.Sprint("p", i)
		if _, err := d.Attach(b.Context(), id, ns.path()); err != nil {
			b.Fatal(err)
		}
		if i >= 200 { // the node's network is small
			b.StopTimer()
			break
		}
	}
}

// many returns n services with three backends each.
func many(n int) []spec.Service {
	out := make([]spec.Service, n)
	for i := range out {
		out[i] = tcpService(fmt.Sprintf("s%05d", i), fmt.Sprintf("10.212.%d.%d", i/250, i%250+1), 80)
		for j := range 3 {
			ip := netip.AddrFrom4([4]byte{10, 211, byte(100 + j), byte(i)})
			out[i].Backends = append(out[i].Backends, spec.Backend{Addr: netip.AddrPortFrom(ip, 8080)})
		}
	}
	return out
}

func BenchmarkSetOneMore(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n, "-services"), func(b *testing.B) {
			d := node(b)
			services := many(n + 1)
			set(b, d, services[:n]...)
			for i := 0; b.Loop(); i++ {
				set(b, d, services[:n+1-i%2]...)
			}
		})
	}
}

func BenchmarkConnect(b *testing.B) {
	d := node(b)
	a := newPod(b, d, "a")
	a.serve(b, "tcp", 8080, "a")
	set(b, d, append(many(1000), tcpService("web", "10.212.200.1", 80, a.backend(8080)))...)
	client := newPod(b, d, "client")
	for name, addr := range map[string]string{"direct": a.addr.String() + ":8080", "service": "10.212.200.1:80"} {
		b.Run(name, func(b *testing.B) {
			client.do(func() {
				for b.Loop() {
					if _, _, err := (testNS{}).ask(addr); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func BenchmarkSetOneMoreNodePort(b *testing.B) {
	d := node(b)
	services := many(1001)
	for i := range services {
		services[i].NodePort = uint16(30000 + i)
	}
	set(b, d, services[:1000]...)
	for i := 0; b.Loop(); i++ {
		set(b, d, services[:1001-i%2]...)
	}
}
