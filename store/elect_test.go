package store_test

import (
	"testing"
	"time"

	"knarr.dev/knarr/store"
)

// A member that waited for ticks would take between one and five seconds.
func TestLoneMemberLeadsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for _, start := range []string{"the first", "a later"} {
		began := time.Now()
		s, err := store.OpenEmbedded(t.Context(), dir)
		if err != nil {
			t.Fatalf("%s start: %v", start, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s start took %v: the member waited for its election", start, took)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
