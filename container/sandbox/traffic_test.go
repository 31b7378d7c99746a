package sandbox

import (
	"slices"
	"testing"
)

func TestParseTraffic(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
`
	want := []Traffic{{"eth0", 1000, 10, 1, 2, 2000, 20, 3, 4}}
	if got := parseTraffic(text); !slices.Equal(got, want) {
		t.Errorf("read %+v", got)
	}
}
