package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestParseMounts(t *testing.T) {
	for _, c := range []struct {
		name, text, v2, memory, cpu string
	}{
		{"v2", "31 23 0:28 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup", "", ""},
		{"hybrid", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory", ""},
		{"v1 together", "35 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n", "", "", "/sys/fs/cgroup/cpu,cpuacct"},
		{"a bind mount of a part", "35 31 0:32 /x /mnt rw - cgroup cgroup rw,memory\n", "", "", ""},
		{"malformed", "x - cgroup2\n\n", "", "", ""},
	} {
		l := parseMounts(c.text)
		if l.V2 != c.v2 || l.V1["memory"] != c.memory || l.V1["cpu"] != c.cpu {
			t.Errorf("%s: %+v", c.name, l)
		}
	}
}

func TestV2Files(t *testing.T) {
	l := Limits{CPUShares: 1024, CPUQuota: 50000, CPUs: "0-1", Memory: 100, MemoryAndSwap: 150, PIDs: -1, Unified: map[string]string{"memory.high": "90"}}
	want := "[{cpu.weight 100} {cpu.max 50000 100000} {cpuset.cpus 0-1} {memory.swap.max 50} {memory.max 100} {pids.max max} {memory.high 90}]"
	if got := fmt.Sprint(l.v2()); got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

func TestV1TakesWhatIsTheSame(t *testing.T) {
	l := Limits{Unified: map[string]string{"memory.high": "90", "pids.max": "7"}}
	if got := fmt.Sprint(l.v1()); got != "map[pids:[{pids.max 7}]]" {
		t.Error(got)
	}
}

func TestWeight(t *testing.T) {
	for shares, weight := range map[uint64]uint64{2: 1, 1024: 100, 262144: 10000, 1: 1} {
		if got := Weight(shares); got != weight {
			t.Errorf("Weight(%d) = %d, not %d", shares, got, weight)
		}
	}
	for s := uint64(2); s < 262144; s += 97 {
		if Weight(s) > Weight(s+97) {
			t.Fatalf("the weight falls after %d", s)
		}
	}
}

// TestGroup uses the machine's own control groups.
func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making control groups needs root")
	}
	layout, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	ctx := context.Background()
	name := filepath.Base(t.TempDir()) + fmt.Sprint(os.Getpid())
	g := layout.Group("/knarr-test-" + name + "/inner")
	t.Cleanup(func() {
		if err := g.Kill(); err != nil {
			t.Error(err)
		}
		if err := g.Remove(ctx); err != nil {
			t.Error(err)
		}
		g.Parent().Prune("/")
		if g.Parent().Exists() {
			t.Errorf("%s was left behind", g.Parent().Path())
		}
	})
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	if err := g.Apply(Limits{Memory: 64 << 20, CPUShares: 512, PIDs: 10}); err != nil {
		t.Fatal(err)
	}
	if got := g.Stats().MemoryLimit; got != 64<<20 {
		t.Errorf("the memory limit reads %d", got)
	}
	// Raising and lowering both limits works in either order.
	for _, n := range []int64{128 << 20, 32 << 20} {
		if err := g.Apply(Limits{Memory: n, MemoryAndSwap: n}); err != nil {
			t.Error(err)
		}
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.JoinAll(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Processes(); err != nil || len(pids) != 1 {
		t.Errorf("processes %v (%v)", pids, err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("a killed process ended well")
	}
}
