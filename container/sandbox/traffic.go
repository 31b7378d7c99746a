package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"knarr.dev/knarr/container/oci"
)

// Traffic is what one network interface has carried.
type Traffic struct {
	Name                                          string
	ReceivedBytes, ReceivedPackets                uint64
	ReceiveErrors, ReceiveDrops                   uint64
	SentBytes, SentPackets, SendErrors, SendDrops uint64
}

// ReadTraffic reads the counters of the interfaces in the network namespace
// pinned at path, without loopback.
func ReadTraffic(path string) ([]Traffic, error) {
	var text []byte
	err := oci.OnThread(func() (err error) {
		if err := oci.EnterNetwork(path); err != nil {
			return err
		}
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the traffic of a pod: %w", err)
	}
	return parseTraffic(string(text)), nil
}

// parseTraffic understands /proc/net/dev: after two lines of headings, a line
// "name: 8 numbers of what was received, 8 of what was sent".
func parseTraffic(text string) []Traffic {
	var list []Traffic
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(rest)
		if !ok || len(f) < 12 || name == "lo" {
			continue
		}
		n := make([]uint64, 12)
		for i := range n {
			n[i], _ = strconv.ParseUint(f[i], 10, 64) // headings have no colon
		}
		list = append(list, Traffic{
			Name: name, ReceivedBytes: n[0], ReceivedPackets: n[1], ReceiveErrors: n[2], ReceiveDrops: n[3],
			SentBytes: n[8], SentPackets: n[9], SendErrors: n[10], SendDrops: n[11],
		})
	}
	return list
}
