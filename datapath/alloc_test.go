package datapath

import (
	"net/netip"
	"testing"
)

func TestAllocator(t *testing.T) {
	a := newAllocator(netip.MustParsePrefix("10.211.0.0/29"))
	next := func(want string) {
		t.Helper()
		got, err := a.next()
		if want == "" {
			if err == nil {
				t.Fatalf("got %v from a full network", got)
			}
		} else if err != nil || got.String() != want {
			t.Fatalf("got %v, %v; want %s", got, err, want)
		}
	}
	next("10.211.0.2")
	a.take(netip.MustParseAddr("10.211.0.4"))
	next("10.211.0.5")
	a.free(netip.MustParseAddr("10.211.0.2"))
	next("10.211.0.6") // a free address rests while there are others
	next("10.211.0.2")
	next("10.211.0.3")
	next("")
	a.free(netip.MustParseAddr("10.211.0.5"))
	next("10.211.0.5")
	next("")
}
