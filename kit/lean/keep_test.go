package lean

import "testing"

func TestPace(t *testing.T) {
	p := pace{busy: true, seen: 5 << 30}
	total := p.seen
	for i, step := range []struct {
		allocated uint64
		busy      bool
	}{
		{100 << 20, true}, // the start
		{1 << 20, true},
		{much - 1, false},
		{1 << 20, false},
		{much, true}, // at once
		{0, true},
		{much, true}, // a pause is no end
		{0, true},
		{0, false},
	} {
		total += step.allocated
		if p.next(total); p.busy != step.busy {
			t.Errorf("interval %d: busy %v, want %v", i, p.busy, step.busy)
		}
	}
}

func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		busy bool
		live uint64
		want int
	}{{true, 0, whenBusy}, {true, large - 1, whenBusy}, {true, large, atRest}, {false, 0, atRest}, {false, large, atRest}} {
		if got := growth(c.busy, c.live); got != c.want {
			t.Errorf("busy %v, %d bytes: %d %%, want %d %%", c.busy, c.live, got, c.want)
		}
	}
}
