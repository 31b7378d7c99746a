package store_test

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"knarr.dev/knarr/store"
	"knarr.dev/knarr/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return store.NewMemory() })
}

func embedded(t testing.TB, dir string) *store.Etcd {
	s, err := store.OpenEmbedded(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEmbedded(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s := embedded(t, t.TempDir())
		t.Cleanup(func() { s.Close() })
		return s
	})
}

func TestEmbeddedKeepsItsDataAndItsDirectory(t *testing.T) {
	dir := t.TempDir()
	s := embedded(t, dir)
	if _, err := store.OpenEmbedded(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "in use by another knarr") {
		t.Fatalf("second store in one directory: %v", err)
	}
	if _, err := s.Write(t.Context(), store.Write{Key: "/a", Value: []byte("kept")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = embedded(t, dir)
	defer s.Close()
	if kv, err := s.Get(t.Context(), "/a"); err != nil || kv == nil || string(kv.Value) != "kept" {
		t.Fatalf("after reopening: %v, %v", kv, err)
	}
}

func TestSealer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "key")
	s, err := store.OpenSealer(file)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal("/a", []byte("secret"))
	if err != nil || bytes.Contains(sealed, []byte("secret")) {
		t.Fatalf("sealed value %q, %v", sealed, err)
	}
	again, err := store.OpenSealer(file)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := again.Open("/a", sealed); err != nil || string(plain) != "secret" {
		t.Fatalf("opened %q, %v", plain, err)
	}
	if _, err := again.Open("/b", sealed); err == nil {
		t.Fatal("a value moved to another key was opened")
	}
	if plain, err := again.Open("/a", []byte("plain")); err != nil || string(plain) != "plain" {
		t.Fatalf("unsealed value: %q, %v", plain, err)
	}
}

// TestSealerRotation: a new key seals, the former one still opens.
func TestSealerRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	open := func() *store.Sealer {
		t.Helper()
		s, err := store.OpenSealer(file)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := open()
	sealed, err := before.Seal("/a", []byte("secret"))
	if err != nil || before.Rotated() || before.Stale("/a", sealed) || !before.Stale("/a", []byte("plain")) {
		t.Fatalf("before: %v", err)
	}
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	after := open()
	if plain, err := after.Open("/a", sealed); err != nil || string(plain) != "secret" || !after.Rotated() || !after.Stale("/a", sealed) {
		t.Fatalf("after: %q, %v", plain, err)
	}
	anew, err := after.Seal("/a", []byte("secret"))
	if err != nil || after.Stale("/a", anew) {
		t.Fatalf("sealed anew: %v", err)
	}
	if _, err := before.Open("/a", anew); err == nil {
		t.Error("the former key opens what the new one seals")
	}
	if err := os.Remove(file + ".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := open().Open("/a", sealed); err == nil {
		t.Error("a key that was removed still opens")
	}
}

// An etcd that other processes reach too: the suite runs over its network door.
func TestExternal(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		cfg := embed.NewConfig()
		cfg.Dir = t.TempDir()
		cfg.LogLevel = "panic"
		loopback := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
		cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{loopback}, nil
		cfg.TickMs, cfg.ElectionMs = 10, 100
		e, err := embed.StartEtcd(cfg)
		if err != nil {
			t.Fatal(err)
		}
		<-e.Server.ReadyNotify()
		s, err := store.OpenEtcd(t.Context(), clientv3.Config{Endpoints: []string{e.Clients[0].Addr().String()}, DialTimeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			s.Close()
			e.Close()
		})
		return s
	})
}

// How many durable 1 KiB writes 64 writers make.
func BenchmarkWrite(b *testing.B) {
	s := embedded(b, b.TempDir())
	defer s.Close()
	value := make([]byte, 1024)
	var n atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			key := "/bench/" + strconv.FormatInt(n.Add(1), 10)
			if r, err := s.Write(b.Context(), store.Write{Key: key, Value: value}); err != nil || !r.Done {
				b.Fatal(r, err)
			}
		}
	})
}
