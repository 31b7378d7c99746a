package cni

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/kit/netns"
)

// LoopbackProgram is the plugin that some runtimes demand beside the network's own:
// it sets a sandbox's loopback link up. The usual one is left alone where it is.
const LoopbackProgram = "loopback"

// loopbackUp sets lo up in the namespace at path.
func loopbackUp(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Do(ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return fmt.Errorf("read the flags of lo: %w", err)
		}
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		return nil
	})
}

func loopbackResult(version, netns string) result {
	ip := resultIP{Address: netip.MustParsePrefix("127.0.0.1/8")}
	if version[0] == '0' {
		ip.Version = "4"
	}
	return result{Version: version, Interfaces: []resultInterface{{Name: "lo", Sandbox: netns}}, IPs: []resultIP{ip}, Routes: []resultRoute{}}
}
