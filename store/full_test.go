package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// A full store refuses what would make it larger, says what to do, and takes writes
// again once that was done.
func TestFullStore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := OpenEmbedded(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	backend := s.near.e.Backend()
	backend.ForceCommit()
	s.near.limit = backend.SizeInUse() + 4<<20
	var written []Write
	var last int64
	for i := 0; ; i++ {
		w := Write{Key: fmt.Sprintf("/big/%d", i), Value: make([]byte, 1<<20)}
		r, err := s.Write(ctx, w)
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil || !r.Done || i > 8 {
			t.Fatalf("write %d: %+v, %v", i, r, err)
		}
		written, last = append(written, Write{Key: w.Key, If: r.Revision, Delete: true}), r.Revision
		backend.ForceCommit() // sizes are counted then
	}
	for _, w := range written {
		r, err := s.Write(ctx, w)
		if err != nil || !r.Done {
			t.Fatalf("deletion: %+v, %v", r, err)
		}
		last = r.Revision
	}
	if err := s.Compact(ctx, last); err != nil {
		t.Fatal(err)
	}
	again := Write{Key: "/again", Value: []byte("1")}
	for {
		backend.ForceCommit()
		r, err := s.Write(ctx, again)
		if err == nil && r.Done {
			return
		}
		if !errors.Is(err, ErrFull) {
			t.Fatalf("%+v, %v", r, err)
		}
		select {
		case <-ctx.Done():
			t.Fatal("what was deleted and compacted did not become free")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
