package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TCP states as the kernel numbers them.
const (
	tcpEstablished = 1
	tcpListen      = 10
)

// Connections counts the established TCP connections that clients outside the pod opened into it, and says when data
// last went over one of them. It tells whether a pod that gets no new connections has finished serving. A pod whose
// network namespace is gone has none.
func (d *Datapath) Connections(ctx context.Context, pod netip.Addr) (n int, lastActive time.Time, err error) {
	if err := ctx.Err(); err != nil {
		return 0, time.Time{}, err
	}
	path, ok := d.pods.netnsOf(pod)
	if !ok {
		return 0, time.Time{}, fmt.Errorf("no pod of this node has address %s", pod)
	}
	ns, err := netns.GetFromPath(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, time.Time{}, nil
	}
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("opening the network namespace of pod %s: %w", pod, err)
	}
	defer ns.Close()
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("opening socket diagnosis in pod %s: %w", pod, err)
	}
	defer in.Close()
	var socks []*netlink.InetDiagTCPInfoResp
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := in.SocketDiagTCPInfo(family)
		if err != nil {
			return 0, time.Time{}, fmt.Errorf("listing the sockets of pod %s: %w", pod, err)
		}
		socks = append(socks, list...)
	}
	listening := map[uint16]bool{}
	for _, s := range socks {
		if s.InetDiagMsg.State == tcpListen {
			listening[s.InetDiagMsg.ID.SourcePort] = true
		}
	}
	now := time.Now()
	for _, s := range socks {
		m := s.InetDiagMsg
		src, _ := netip.AddrFromSlice(m.ID.Source)
		dst, _ := netip.AddrFromSlice(m.ID.Destination)
		if m.State != tcpEstablished || src.Unmap() != pod || dst.Unmap() == pod || !listening[m.ID.SourcePort] {
			continue
		}
		n++
		if s.TCPInfo != nil {
			idle := time.Duration(min(s.TCPInfo.Last_data_recv, s.TCPInfo.Last_data_sent)) * time.Millisecond
			if at := now.Add(-idle); at.After(lastActive) {
				lastActive = at
			}
		}
	}
	return n, lastActive, nil
}
