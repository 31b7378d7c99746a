package datapath

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// What the kernel listed while it changed is listed again; other errors are told.
func TestCompleteLists(t *testing.T) {
	calls := 0
	got, err := complete(func() ([]int, error) {
		if calls++; calls < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(got) != 2 || calls != 3 {
		t.Errorf("%v %v after %d lists", got, err, calls)
	}
	broken := errors.New("broken")
	if _, err := complete(func() ([]int, error) { return nil, broken }); err != broken {
		t.Errorf("got %v, want %v", err, broken)
	}
}
