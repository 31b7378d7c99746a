package store_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"knarr.dev/knarr/store"
)

// The child of TestKilledStore writes for ever and says what has been
// acknowledged.
func TestMain(m *testing.M) {
	if dir := os.Getenv("KNARR_STORE_CHILD"); dir != "" {
		writeForEver(dir)
	}
	os.Exit(m.Run())
}

func writeForEver(dir string) {
	ctx := context.Background() // a process of its own
	s, err := store.OpenEmbedded(ctx, dir)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		key := fmt.Sprintf("/k/%s/%d", os.Getenv("KNARR_STORE_ROUND"), i)
		if r, err := s.Write(ctx, store.Write{Key: key, Value: []byte("v")}); err != nil || !r.Done {
			fmt.Println("error:", r, err)
			os.Exit(1)
		}
		fmt.Println(key)
	}
}

// A store that is killed again and again, at any moment, opens each time and has
// every write that it acknowledged.
func TestKilledStore(t *testing.T) {
	dir := t.TempDir()
	var acknowledged []string
	for round := range 15 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "KNARR_STORE_CHILD="+dir, fmt.Sprintf("KNARR_STORE_ROUND=%d", round))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var line string
		for range 20 + 10*round {
			if _, err := fmt.Fscanln(out, &line); err != nil || !strings.HasPrefix(line, "/k/") {
				t.Fatalf("round %d: the store said %q, %v", round, line, err)
			}
			acknowledged = append(acknowledged, line)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // killed
	}
	s := embedded(t, dir)
	defer s.Close()
	all, err := s.Range(t.Context(), "/k/", store.RangeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, kv := range all.KVs {
		have[kv.Key] = true
	}
	for _, key := range acknowledged {
		if !have[key] {
			t.Errorf("acknowledged write %s is lost", key)
		}
	}
}
