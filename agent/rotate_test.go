package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
)

func TestWhenLogsAreLookedAt(t *testing.T) {
	const mi = 1 << 20
	for _, tc := range []struct {
		name        string
		size, grown int64
		passed      time.Duration
		want        time.Duration
	}{
		{"quiet", 5 * mi, 0, 10 * time.Second, 10 * time.Second},
		{"replaced", 1 * mi, -5 * mi, 10 * time.Second, 10 * time.Second},
		{"slow", 5 * mi, 1 * mi, 10 * time.Second, time.Second},
		{"full in 500 ms", 5 * mi, 5 * mi, 500 * time.Millisecond, 500 * time.Millisecond},
		{"full in 100 ms", 9 * mi, 10 * mi, time.Second, 100 * time.Millisecond},
		{"a flood", 0, 1000 * mi, time.Second, 50 * time.Millisecond},
		{"too large", 11 * mi, 1 * mi, time.Second, 50 * time.Millisecond},
	} {
		if got := untilFull(maxLogSize, tc.size, tc.grown, tc.passed); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A container that writes 100 MiB/s leaves no more than the files that are kept, each
// at most half as large again as one ought to be, once its flood has been noticed.
func TestAFloodStaysBounded(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	w := newWorld(t)
	a := w.run()
	quiet := 0
	w.pod("p", nil)
	w.wait("p", "running", running)
	actors := a.pods.all()
	w.stop() // the agent looks after logs too
	w.cfg.LogMaxSize, w.cfg.LogMaxFiles = maxLogSize, maxLogFiles
	logs := &rotation{cfg: &w.cfg, actors: func() map[string]*pod.Actor { return actors }, clock: clk, quiet: func(string) error { quiet++; return nil }}
	dir := filepath.Join(podspec.LogDir(w.cfg.LogRoot, "default", "p", "uid-p"), "c")
	path := filepath.Join(dir, "0.log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if next := logs.look(t.Context()); next != collectEvery || quiet != 1 {
		t.Errorf("a quiet log is looked at again after %v, told of %d times", next, quiet)
	}
	const rate = 100 << 20 // bytes a second
	passed := alarmedIn
	for i := range 60 {
		info, err := os.Stat(path)
		size := int64(0)
		if err == nil {
			size = info.Size()
		} else if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size+int64(float64(rate)*passed.Seconds())); err != nil {
			t.Fatal(err)
		}
		clk.SetTime(clk.Now().Add(passed))
		passed = logs.look(t.Context())
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		var total int64
		for _, f := range files {
			if info, err := os.Stat(f); err == nil {
				total += info.Size()
			}
		}
		if total > maxLogFiles*maxLogSize*3/2 || len(files) > maxLogFiles {
			t.Fatalf("look %d: %d bytes in %d files", i, total, len(files))
		}
	}
	if rotated, _ := filepath.Glob(path + ".*"); len(rotated) != maxLogFiles-1 {
		t.Errorf("%d files are kept", len(rotated))
	}
}
