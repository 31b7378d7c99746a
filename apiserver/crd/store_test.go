package crd_test

import (
	"io"
	"testing"

	"knarr.dev/knarr/store"
)

// shared is a store that outlives the servers that close it.
type shared struct{ store.Store }

func (s *shared) open() store.Store {
	if s.Store == nil {
		s.Store = store.NewMemory()
	}
	return &kept{s.Store}
}

type kept struct{ store.Store }

// Close leaves the store to the next server.
func (*kept) Close() error { return nil }

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
