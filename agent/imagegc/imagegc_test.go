package imagegc

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func names(list []Image) string {
	var out []string
	for _, i := range list {
		out = append(out, i.ID)
	}
	return strings.Join(out, " ")
}

func TestOldestUseGoesFirst(t *testing.T) {
	at := time.Unix(1_900_000_000, 0)
	var r Records
	c := Config{High: 85, Low: 80, MinAge: 2 * time.Minute, MaxAge: 30 * time.Minute}
	set := func(used string, all ...string) (out []Image) {
		for _, id := range all {
			out = append(out, Image{ID: id, InUse: strings.Contains(used, id)})
		}
		return out
	}
	for _, step := range []struct {
		after            time.Duration
		used             string
		all              []string
		removable, stale string
	}{
		{0, "a", []string{"a", "b", "c"}, "b c", ""},               // unknown ones may have been there for ever
		{time.Minute, "ab", []string{"a", "b", "c", "d"}, "c", ""}, // d is too young
		{time.Minute, "a", []string{"a", "b", "c", "d"}, "c b", ""},
		{time.Minute, "", []string{"a", "b", "c", "d"}, "d c b a", ""}, // c began to count at the first look
		{29 * time.Minute, "", []string{"a", "b", "c", "d"}, "d c b a", "d c b"},
		{time.Hour, "", []string{"a", "b", "c", "d"}, "d c b a", "d c b a"},
		{0, "", []string{"a"}, "a", "a"},
		{0, "", []string{"a", "b"}, "a", "a"}, // pulled anew
	} {
		at = at.Add(step.after)
		images := set(step.used, step.all...)
		r.Look(at, images)
		stale := names(r.Stale(c, at, images))
		if got := names(r.Removable(c, at, images)); got != step.removable || stale != step.stale {
			t.Errorf("%v: removable %q, want %q; stale %q, want %q", step, got, step.removable, stale, step.stale)
		}
	}
	if got := r.Stale(Default(), at, set("", "a")); got != nil {
		t.Errorf("without a longest age, %v are stale", got)
	}
}

func TestExcess(t *testing.T) {
	for _, tc := range []struct{ total, free, want int64 }{{1000, 151, 0}, {1000, 150, 50}, {1000, 0, 200}, {0, 0, 0},
		{1000 << 30, 10 << 30, 0}, {1000 << 30, 8 << 30, 64<<30/100*20 - 8<<30}} {
		if got := Default().Excess(tc.total, tc.free); got != tc.want {
			t.Errorf("%d of %d free: %d, want %d", tc.free, tc.total, got, tc.want)
		}
	}
	for _, c := range []Config{{High: 101, Low: 1}, {High: 80, Low: 80}, {High: 80, Low: -1}, {High: 9, Low: 1, MinAge: -1}, {High: 9, Low: 1, MinAge: 5, MaxAge: 5}} {
		if c.Validate() == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	if err := Default().Validate(); err != nil {
		t.Error(fmt.Errorf("the default: %w", err))
	}
}
