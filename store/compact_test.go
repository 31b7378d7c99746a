package store_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"knarr.dev/knarr/store"
)

func TestCompactEvery(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := store.NewMemory()
	first, err := s.Write(ctx, store.Write{Key: "/a", Value: []byte("1")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(ctx, store.Write{Key: "/a", If: first.Revision, Value: []byte("2")}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- store.CompactEvery(ctx, s, time.Millisecond, slog.Default()) }()
	for {
		_, err := s.Range(ctx, "/", store.RangeOptions{Revision: first.Revision})
		if errors.Is(err, store.ErrCompacted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
