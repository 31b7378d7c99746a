package oci

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// EnterNetwork puts the calling thread, one of [OnThread]'s, into the network
// namespace pinned at path.
func EnterNetwork(path string) error { return setns(path, unix.CLONE_NEWNET) }

// Connect makes a TCP connection in the calling thread's network namespace by
// plain system calls: package net might use another thread. The caller closes
// the descriptor. Connecting to one's own machine succeeds or fails at once.
func Connect(ctx context.Context, host, port string) (int, error) {
	if err := ctx.Err(); err != nil {
		return -1, err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return -1, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return -1, fmt.Errorf("port %q: %w", port, err)
	}
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if addr.Is4() {
		sa = &unix.SockaddrInet4{Port: int(n), Addr: addr.As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(n), Addr: addr.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connecting to %s port %s: %w", host, port, err)
	}
	return fd, nil
}
