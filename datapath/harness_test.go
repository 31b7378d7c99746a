package datapath

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"knarr.dev/knarr/datapath/spec"
)

func testConfig(t testing.TB) Config {
	t.Helper()
	return Config{
		Name: "kt", PodCIDR: netip.MustParsePrefix("10.211.0.0/24"), ClusterCIDR: netip.MustParsePrefix("10.211.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.212.0.0/16"), Run: t.TempDir(), CgroupRoot: nodeCgroup(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func open(t testing.TB, cfg Config) *Datapath {
	t.Helper()
	d, err := Open(context.WithoutCancel(t.Context()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// node opens a datapath that is destroyed with the test.
func node(t testing.TB) *Datapath {
	t.Helper()
	d := open(t, testConfig(t))
	t.Cleanup(func() { destroy(t, d) })
	return d
}

func destroy(t testing.TB, d *Datapath) {
	t.Helper()
	if err := d.Destroy(context.WithoutCancel(t.Context())); err != nil {
		t.Error("destroy:", err)
	}
}

// testNS is a network namespace. The zero value is the node's own.
type testNS struct {
	h     netns.NsHandle
	world bool // plays another machine: the node's programs do not see it
}

func newNS(t testing.TB) testNS {
	t.Helper()
	made := make(chan testNS)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.New()
		if err != nil {
			t.Error(err)
			h = netns.None()
		}
		made <- testNS{h: h}
	}()
	ns := <-made
	if !ns.h.IsOpen() {
		t.FailNow()
	}
	t.Cleanup(func() { ns.h.Close() })
	return ns
}

func (n testNS) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.h)) }

// do runs f on a thread inside the namespace; sockets that it opens stay there.
func (n testNS) do(f func()) {
	if n.h == 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := netns.Set(n.h); err != nil {
			panic(err)
		}
		if n.world {
			tid := []byte(strconv.Itoa(unix.Gettid()))
			if err := os.WriteFile(worldCgroup()+"/cgroup.threads", tid, 0); err != nil {
				panic(err)
			}
		}
		f()
	}()
	<-done
}

func (n testNS) dial(network, addr string) (c net.Conn, err error) {
	n.do(func() { c, err = net.DialTimeout(network, addr, 3*time.Second) })
	return c, err
}

// serve answers every connection or datagram on port with name and closes.
func (n testNS) serve(t testing.TB, network string, port uint16, name string) {
	t.Helper()
	addr := fmt.Sprintf("0.0.0.0:%d", port)
	if network == "udp" {
		var pc net.PacketConn
		var err error
		n.do(func() { pc, err = net.ListenPacket("udp4", addr) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 1500)
			for {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(name), from)
			}
		}()
		return
	}
	var l net.Listener
	var err error
	n.do(func() { l, err = net.Listen("tcp4", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name+" "+c.RemoteAddr().(*net.TCPAddr).IP.String())
			_ = c.Close()
		}
	}()
}

// ask makes a TCP connection and returns the name of who answered and as whom it saw us.
func (n testNS) ask(addr string) (name, seen string, err error) {
	c, err := n.dial("tcp4", addr)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return "", "", err
	}
	_, err = fmt.Sscan(string(b), &name, &seen)
	return name, seen, err
}

type testPod struct {
	testNS
	id   string
	addr netip.Addr
}

func newPod(t testing.TB, d *Datapath, id string) testPod {
	t.Helper()
	p := testPod{testNS: newNS(t), id: id}
	addrs, err := d.Attach(t.Context(), id, p.path())
	if err != nil {
		t.Fatal(err)
	}
	p.addr = addrs[0]
	return p
}

func (p testPod) backend(port uint16) spec.Backend {
	return spec.Backend{Addr: netip.AddrPortFrom(p.addr, port), Local: true}
}

func tcpService(name, ip string, port uint16, backends ...spec.Backend) spec.Service {
	return spec.Service{
		Namespace: "default", Name: name, IPs: []netip.Addr{netip.MustParseAddr(ip)}, Protocol: spec.TCP, Port: port,
		Backends: backends,
	}
}

func set(t testing.TB, d *Datapath, services ...spec.Service) {
	t.Helper()
	if err := d.Set(t.Context(), spec.State{Services: services}); err != nil {
		t.Fatal(err)
	}
}
