package pod

import (
	"testing"
	"time"
)

// Time that images and init containers both took is not taken twice.
func TestSpans(t *testing.T) {
	at := func(begin, end int64) span { return span{time.Unix(begin, 0), time.Unix(end, 0)} }
	for _, c := range []struct {
		a, b span
		want time.Duration
	}{
		{span{}, span{}, 0}, {at(1, 3), span{}, 2}, {span{}, at(1, 3), 2}, {at(1, 3), at(5, 9), 6}, {at(5, 9), at(1, 3), 6},
		{at(1, 6), at(5, 9), 8}, {at(1, 9), at(5, 6), 8}, {at(5, 6), at(1, 9), 8},
	} {
		if got := c.a.together(c.b); got != c.want*time.Second {
			t.Errorf("%v and %v: %s, want %ds", c.a, c.b, got, c.want)
		}
	}
	if s := at(3, 4).with(time.Unix(1, 0), time.Unix(2, 0)); s != at(1, 4) {
		t.Errorf("with something earlier: %v", s)
	}
}
