package api_test

import (
	"testing"
	"time"

	"knarr.dev/knarr/api"
)

func TestKindsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range api.Kinds() {
		if k.New == nil || k.NewList == nil || k.Singular == "" || k.Storage == "" {
			t.Errorf("%s: incomplete", k.GVK())
			continue
		}
		if at := k.GVR().String(); seen[at] {
			t.Errorf("%s: served twice", at)
		} else {
			seen[at] = true
		}
		if k.Row == nil {
			continue
		}
		if got := len(k.Row(k.New(), time.Unix(0, 0))); got != len(k.Columns) {
			t.Errorf("%s: %d cells in a row of %d columns", k.GVK(), got, len(k.Columns))
		}
	}
}
