package watchcache

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/store"
)

// unwatched is a store whose watches nobody may wait for.
type unwatched struct {
	store.Store
	t *testing.T
}

func (u unwatched) Watch(context.Context, string, int64) store.Watcher {
	u.t.Fatal("the start waits for events of a store that has none")
	return nil
}

// A new store has no past: the start waits for none of its events, which an etcd that
// has just started itself delivers up to 100 ms later.
func TestNewStoreHasNoPast(t *testing.T) {
	st, err := store.OpenEmbedded(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := Open(t.Context(), unwatched{st, t}, nil, nil, nil, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if now, err := st.Revision(t.Context()); err != nil || h.Revision() != now {
		t.Errorf("the caches are at revision %d, the store at %d, %v", h.Revision(), now, err)
	}
}

// After a restart a watch resumes from before it: the past that the store has kept
// is read again, with what has been deleted meanwhile.
func TestHistoryOutlivesARestart(t *testing.T) {
	st := store.NewMemory()
	k := &kind.Kind{Version: "v1", Kind: "ConfigMap", Resource: "configmaps", Storage: "configmaps"}
	write := func(name string, prev int64, value string) int64 {
		t.Helper()
		w, err := st.Write(t.Context(), store.Write{Key: Key(k, "ns/"+name), If: prev, Value: []byte(value), Delete: value == ""})
		if err != nil || !w.Done {
			t.Fatal(w, err)
		}
		return w.Revision
	}
	open := func() *Hub {
		t.Helper()
		h, err := Open(t.Context(), st, []*kind.Kind{k}, func(_ *kind.Kind, _ string, value []byte) (kind.Object, error) {
			return &corev1.ConfigMap{Data: map[string]string{"v": string(value)}}, nil
		}, nil, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	a1 := write("a", 0, "a1")
	b1 := write("b", 0, "b1")
	open()
	a2 := write("a", a1, "a2")
	write("b", b1, "")
	for range 2 { // each start leaves a mark of its own, which nobody sees
		w, err := open().Cache(k).Watch(b1)
		if err != nil {
			t.Fatal(err)
		}
		events, err := w.Poll()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			before := ""
			if e.Prev != nil {
				before = e.Prev.Object.(*corev1.ConfigMap).Data["v"]
			}
			got = append(got, fmt.Sprintf("%s %s>%s", e.Type, before, e.Item.Object.(*corev1.ConfigMap).Data["v"]))
		}
		if s := strings.Join(got, " "); s != "MODIFIED a1>a2 DELETED b1>b1" {
			t.Errorf("resumed after revision %d: %s", b1, s)
		}
	}
	if err := st.Compact(t.Context(), a2); err != nil {
		t.Fatal(err)
	}
	c := open().Cache(k)
	if _, err := c.Watch(b1); err != ErrExpired {
		t.Errorf("from before what is kept: %v", err)
	}
	if _, err := c.Watch(a2); err != nil {
		t.Errorf("from the oldest revision that is kept: %v", err)
	}
}
