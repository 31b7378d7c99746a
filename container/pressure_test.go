package container

import (
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Two loops on one CPU wait for each other: their container and its pod are under
// pressure. Where the kernel does not count it nothing is told.
func TestPressure(t *testing.T) {
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		t.Skipf("this kernel does not count pressure: %v", err)
	}
	t.Parallel()
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "while :; do :; done & while :; do :; done", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpusetCpus: "0", CpuShares: 2}
	})
	stats := func() *runtimeapi.ContainerStats {
		r, err := f.ContainerStats(f.ctx(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Stats
	}
	// The kernel adds up every two seconds.
	await(t, func() bool { return stats().Cpu.GetPsi().GetSome().GetTotal() > 0 }, "two loops on one CPU do not wait for it")
	if s := stats(); s.Memory.Psi == nil || s.Io.Psi == nil || s.Cpu.Psi.Some.Avg10 > 100 {
		t.Errorf("measured %v", s)
	}
	r, err := f.PodSandboxStats(f.ctx(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Stats.Linux; p.Cpu.GetPsi().GetSome().GetTotal() == 0 || p.Memory.Psi == nil || p.Io.Psi == nil {
		t.Errorf("the pod's: %v", p)
	}
	shown := func() (n int) {
		list, err := f.ListPodSandboxMetrics(f.ctx(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list.PodMetrics[0].ContainerMetrics[0].Metrics {
			if m.Name == "container_pressure_cpu_waiting_seconds_total" || m.Name == "container_pressure_io_stalled_seconds_total" {
				n++
			}
		}
		return n
	}
	if n := shown(); n != 2 {
		t.Errorf("%d of 2 metrics of pressure", n)
	}
	off := filepath.Join(f.layout.V2, f.containers[id].group.Path(), "cgroup.pressure")
	if err := os.WriteFile(off, []byte("0"), 0); err != nil {
		t.Skipf("pressure cannot be switched off (before Linux 6.1): %v", err)
	}
	if s := stats(); s.Cpu.Psi != nil || s.Memory.Psi != nil || s.Io.Psi != nil {
		t.Errorf("with nothing counted: %v", s)
	}
	if n := shown(); n != 0 {
		t.Errorf("%d metrics of pressure with nothing counted", n)
	}
}
