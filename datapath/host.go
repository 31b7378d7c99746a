package datapath

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const forwardSysctl = "/proc/sys/net/ipv4/ip_forward"

// cgroupRoot finds the machine's cgroup2 mount.
func cgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("looking for the cgroup2 mount: %w", err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// 36 35 98:0 /root /mount/point options optional... - type source options (proc(5))
		left, right, ok := strings.Cut(sc.Text(), " - ")
		fields := strings.Fields(left)
		if ok && strings.HasPrefix(right, "cgroup2 ") && len(fields) > 4 {
			return strings.ReplaceAll(fields[4], `\040`, " "), nil
		}
	}
	return "", errors.New("no cgroup2 mount found; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// netnsCookie identifies our network namespace to BPF programs. Kernels before 5.14 do not tell.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

func isBPF(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

// mountBPF makes sure that dir lies on a bpffs.
func mountBPF(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the BPF pin directory: %w", err)
	}
	if isBPF(dir) {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mounting a bpffs at %s: %w; mount one there by hand or name another directory", dir, err)
	}
	return nil
}

// unmountBPF undoes mountBPF: a bpffs whose root is not dir is somebody else's.
func unmountBPF(dir string) error {
	if !isBPF(dir) || isBPF(filepath.Dir(dir)) {
		return nil
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if e.IsDir() {
			return nil // other instances pin here
		}
	}
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	return os.Remove(dir)
}

// ipNet converts to the netlink library's terms.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func host32(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func (d *Datapath) gatewayAddr() *netlink.Addr { return &netlink.Addr{IPNet: host32(d.gateway)} }

// unusedRoute keeps packets to pod addresses that nobody has from leaving by the default route.
func (d *Datapath) unusedRoute() *netlink.Route {
	return &netlink.Route{Dst: ipNet(d.cfg.PodCIDR), Type: unix.RTN_UNREACHABLE}
}

// prepareHost gives the node the gateway address and lets it forward.
func (d *Datapath) prepareHost() error {
	lo, err := d.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback link: %w", err)
	}
	if err := d.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting the loopback link up: %w", err)
	}
	if err := d.nl.AddrReplace(lo, d.gatewayAddr()); err != nil {
		return fmt.Errorf("adding gateway address %s: %w", d.gateway, err)
	}
	if err := d.nl.RouteReplace(d.unusedRoute()); err != nil {
		return fmt.Errorf("adding the route for unused pod addresses: %w", err)
	}
	old, err := os.ReadFile(forwardSysctl)
	if err != nil {
		return fmt.Errorf("reading %s: %w", forwardSysctl, err)
	}
	if strings.TrimSpace(string(old)) == "1" {
		return nil
	}
	if err := os.MkdirAll(d.cfg.Run, 0o700); err != nil {
		return fmt.Errorf("creating the run directory: %w", err)
	}
	// Destroy puts the old value back; the mark comes first, so that a crash in between loses nothing.
	if err := os.WriteFile(d.forwardMark(), old, 0o600); err != nil {
		return fmt.Errorf("noting the old value of ip_forward: %w", err)
	}
	if err := os.WriteFile(forwardSysctl, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("enabling IP forwarding: %w; set net.ipv4.ip_forward=1", err)
	}
	return nil
}

func (d *Datapath) forwardMark() string { return filepath.Join(d.cfg.Run, d.cfg.Name+".ip_forward") }

// destroyHost removes links, routes and addresses, and gives back ip_forward unless another instance needs it.
func (d *Datapath) destroyHost(ctx context.Context) error {
	var errs []error
	links, err := d.podLinks()
	errs = append(errs, err)
	for _, l := range links {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		if err := d.nl.LinkDel(l.link); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("deleting link %s: %w", l.link.Attrs().Name, err))
		}
	}
	if err := d.nl.RouteDel(d.unusedRoute()); err != nil && !errors.Is(err, unix.ESRCH) {
		errs = append(errs, fmt.Errorf("deleting the route for unused pod addresses: %w", err))
	}
	if lo, err := d.nl.LinkByName("lo"); err != nil {
		errs = append(errs, err)
	} else if err := d.nl.AddrDel(lo, d.gatewayAddr()); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		errs = append(errs, fmt.Errorf("deleting gateway address: %w", err))
	}
	if old, err := os.ReadFile(d.forwardMark()); err == nil {
		alone, err := d.lastTable()
		errs = append(errs, err)
		if alone {
			errs = append(errs, os.WriteFile(forwardSysctl, old, 0o644))
		}
		errs = append(errs, os.Remove(d.forwardMark()))
	}
	return errors.Join(errs...)
}

// setNodes tells the programs the addresses at which node ports answer.
func (d *Datapath) setNodes() error {
	if len(d.cfg.NodeAddrs) > 0 {
		return d.kernel.SetNodes(d.cfg.NodeAddrs)
	}
	list, err := complete(func() ([]netlink.Addr, error) { return d.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the node's addresses: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if ip, ok := ofNode(a.IP); ok {
			addrs = append(addrs, ip)
		}
	}
	return d.kernel.SetNodes(addrs)
}

// ofNode tells whether node ports may answer at an address. Loopback is known to
// the programs, and means the node to its own processes alone.
func ofNode(a net.IP) (netip.Addr, bool) {
	ip, ok := netip.AddrFromSlice(a)
	ip = ip.Unmap()
	return ip, ok && !ip.IsLoopback() && !ip.IsLinkLocalUnicast()
}

// watch follows the node's addresses and the end of pod links.
func (d *Datapath) watch(ctx context.Context) error {
	lost := func(what string) func(error) {
		return func(err error) {
			if ctx.Err() == nil {
				d.log.Warn("netlink events lost", "of", what, "err", err)
			}
		}
	}
	links := make(chan netlink.LinkUpdate, 64)
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: lost("links")})
	if err != nil {
		return fmt.Errorf("subscribing to links: %w", err)
	}
	d.watches.Go(func() {
		for u := range links {
			if u.Header.Type == unix.RTM_DELLINK {
				d.pods.linkGone(u.Link.Attrs().Name, d)
			}
		}
	})
	if len(d.cfg.NodeAddrs) > 0 {
		return nil
	}
	addrs := make(chan netlink.AddrUpdate, 64)
	err = netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: lost("addresses")})
	if err != nil {
		return fmt.Errorf("subscribing to addresses: %w", err)
	}
	d.watches.Go(func() {
		for u := range addrs {
			if ctx.Err() != nil {
				continue // the channel is closed in a moment
			}
			if _, ok := ofNode(u.LinkAddress.IP); !ok {
				continue // every pod's link gets one of its own
			}
			if err := d.setNodes(); err != nil {
				d.log.Error("updating node addresses for node ports", "err", err)
			}
		}
	})
	return nil
}

func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}
