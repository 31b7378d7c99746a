// Package storetest is the conformance suite of store.Store: each
// implementation's test calls Run.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"knarr.dev/knarr/store"
)

// Run tests a store made by open, which is called once for each subtest and must
// return an empty store.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"conditional writes", conditionalWrites},
		{"range pages a fixed revision", rangePages},
		{"watch sees every change once and in order", watchOrder},
		{"watch resumes from a revision", watchResumes},
		{"compaction forgets history only", compaction},
		{"one of many concurrent writers wins", oneWins},
		{"several keys change at once or not at all", together},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func write(t *testing.T, s store.Store, w store.Write) int64 {
	t.Helper()
	r, err := s.Write(t.Context(), w)
	if err != nil || !r.Done {
		t.Fatalf("write %+v: %+v, %v", w, r, err)
	}
	return r.Revision
}

func conditionalWrites(t *testing.T, s store.Store) {
	ctx := t.Context()
	if kv, err := s.Get(ctx, "/a"); kv != nil || err != nil {
		t.Fatalf("absent key: %v, %v", kv, err)
	}
	first := write(t, s, store.Write{Key: "/a", Value: []byte("1")})
	r, err := s.Write(ctx, store.Write{Key: "/a", Value: []byte("x")})
	if err != nil || r.Done || r.Current == nil || string(r.Current.Value) != "1" || r.Current.Revision != first {
		t.Fatalf("create of a present key: %+v, %v", r, err)
	}
	second := write(t, s, store.Write{Key: "/a", If: first, Value: []byte("2")})
	if second <= first {
		t.Fatalf("revisions do not ascend: %d, then %d", first, second)
	}
	if r, err := s.Write(ctx, store.Write{Key: "/a", If: first, Delete: true}); err != nil || r.Done {
		t.Fatalf("delete at a stale revision: %+v, %v", r, err)
	}
	write(t, s, store.Write{Key: "/a", If: second, Delete: true})
	if r, err := s.Write(ctx, store.Write{Key: "/a", If: second, Value: nil}); err != nil || r.Done || r.Current != nil {
		t.Fatalf("update of a deleted key: %+v, %v", r, err)
	}
}

func rangePages(t *testing.T, s store.Store) {
	ctx := t.Context()
	for i := range 5 {
		write(t, s, store.Write{Key: fmt.Sprintf("/p/%d", i), Value: []byte("v")})
	}
	write(t, s, store.Write{Key: "/q", Value: []byte("v")})
	page, err := s.Range(ctx, "/p/", store.RangeOptions{Limit: 2})
	if err != nil || len(page.KVs) != 2 || !page.More || page.Remaining != 3 {
		t.Fatalf("first page: %+v, %v", page, err)
	}
	write(t, s, store.Write{Key: "/p/9", Value: []byte("late")})
	rest, err := s.Range(ctx, "/p/", store.RangeOptions{Revision: page.Revision, From: page.KVs[1].Key + "\x00"})
	if err != nil || len(rest.KVs) != 3 || rest.More || rest.Revision != page.Revision {
		t.Fatalf("rest of the same revision: %+v, %v", rest, err)
	}
}

// collect reads n events of a watch.
func collect(t *testing.T, w store.Watcher, n int) []store.Event {
	t.Helper()
	var out []store.Event
	for len(out) < n {
		batch, err := w.Next()
		if err != nil {
			t.Fatalf("watch ended after %d of %d events: %v", len(out), n, err)
		}
		out = append(out, batch...)
	}
	return out
}

// end reads a watch until it ends and tells why.
func end(w store.Watcher) error {
	for {
		if _, err := w.Next(); err != nil {
			return err
		}
	}
}

func watchOrder(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rev, err := s.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w := s.Watch(ctx, "/w/", rev+1)
	a := write(t, s, store.Write{Key: "/w/a", Value: []byte("1")})
	write(t, s, store.Write{Key: "/x", Value: []byte("elsewhere")})
	b := write(t, s, store.Write{Key: "/w/a", If: a, Value: []byte("2")})
	c := write(t, s, store.Write{Key: "/w/a", If: b, Delete: true})
	got := collect(t, w, 3)
	for i, want := range []store.Event{
		{KV: store.KV{Key: "/w/a", Value: []byte("1"), Revision: a}, Created: true},
		{KV: store.KV{Key: "/w/a", Value: []byte("2"), Revision: b}},
		{KV: store.KV{Key: "/w/a", Revision: c}, Deleted: true},
	} {
		g := got[i]
		if g.Key != want.Key || string(g.Value) != string(want.Value) || g.Revision != want.Revision || g.Deleted != want.Deleted || g.Created != want.Created {
			t.Errorf("event %d: %+v, want %+v", i, g, want)
		}
	}
	cancel()
	if err := end(w); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled watch ended with %v", err)
	}
}

func watchResumes(t *testing.T, s store.Store) {
	var revs []int64
	for i := range 10 {
		revs = append(revs, write(t, s, store.Write{Key: fmt.Sprintf("/r/%d", i)}))
	}
	w := s.Watch(t.Context(), "/r/", revs[6])
	for i, e := range collect(t, w, 4) {
		if e.Revision != revs[6+i] {
			t.Fatalf("event %d has revision %d, want %d", i, e.Revision, revs[6+i])
		}
	}
}

func compaction(t *testing.T, s store.Store) {
	ctx := t.Context()
	a := write(t, s, store.Write{Key: "/c/a", Value: []byte("1")})
	b := write(t, s, store.Write{Key: "/c/a", If: a, Value: []byte("2")})
	last := write(t, s, store.Write{Key: "/c/b", Value: []byte("3")})
	if err := s.Compact(ctx, last); err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(ctx, last); err != nil {
		t.Fatalf("second compaction to one revision: %v", err)
	}
	if _, err := s.Range(ctx, "/c/", store.RangeOptions{Revision: b}); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("range of a compacted revision: %v", err)
	}
	if r, err := s.Range(ctx, "/c/", store.RangeOptions{}); err != nil || len(r.KVs) != 2 {
		t.Fatalf("current values after compaction: %+v, %v", r, err)
	}
	w := s.Watch(ctx, "/c/", a)
	if err := end(w); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("watch of a compacted revision ended with %v", err)
	}
}

func oneWins(t *testing.T, s store.Store) {
	base := write(t, s, store.Write{Key: "/k", Value: []byte("0")})
	var wg sync.WaitGroup
	var mu sync.Mutex
	wins := 0
	for i := range 16 {
		wg.Go(func() {
			r, err := s.Write(t.Context(), store.Write{Key: "/k", If: base, Value: fmt.Append(nil, i)})
			if err != nil {
				t.Error(err)
				return
			}
			if r.Done {
				mu.Lock()
				wins++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if wins != 1 {
		t.Fatalf("%d writers won one revision", wins)
	}
}

func together(t *testing.T, s store.Store) {
	ctx := t.Context()
	gone := write(t, s, store.Write{Key: "/gone", Value: []byte("x")})
	w := s.Watch(ctx, "/", gone+1)
	rev := write(t, s, store.Write{Key: "/b", Value: []byte("1"), Also: []store.Write{{Key: "/a", Value: []byte("2")}, {Key: "/gone", If: gone, Delete: true}}})
	events := collect(t, w, 3)
	for i, want := range []struct {
		key              string
		deleted, created bool
	}{{"/b", false, true}, {"/a", false, true}, {"/gone", true, false}} {
		if e := events[i]; e.Key != want.key || e.Deleted != want.deleted || e.Created != want.created || e.Revision != rev {
			t.Errorf("event %d: %+v, want %+v at revision %d", i, e, want, rev)
		}
	}
	for name, w := range map[string]store.Write{
		"the second":  {Key: "/c", Also: []store.Write{{Key: "/a"}}},
		"the first":   {Key: "/b", Also: []store.Write{{Key: "/c"}}},
		"a deletion":  {Key: "/c", Also: []store.Write{{Key: "/gone", If: gone, Delete: true}}},
		"of deletion": {Key: "/b", If: rev, Delete: true, Also: []store.Write{{Key: "/a", If: rev + 7, Delete: true}}},
	} {
		r, err := s.Write(ctx, w)
		if err != nil || r.Done {
			t.Errorf("%s does not hold: %+v, %v", name, r, err)
		}
		if present := r.Current != nil; present != (w.Key == "/b") || present && r.Current.Revision != rev {
			t.Errorf("%s does not hold: it says that %s is %+v", name, w.Key, r.Current)
		}
	}
	if now, err := s.Revision(ctx); err != nil || now != rev {
		t.Errorf("revision %d, %v: want %d", now, err, rev)
	}
}
