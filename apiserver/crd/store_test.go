package crd_test

import "knarr.dev/knarr/store"

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
