package usage

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/cri"
)

// runtime tells of one pod whose container used cpu nanoseconds.
type runtime struct {
	runtimeapi.RuntimeServiceClient
	cpu   map[string]uint64 // by container
	calls int
}

func (r *runtime) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	r.calls++
	box := &runtimeapi.LinuxPodSandboxStats{Process: &runtimeapi.ProcessUsage{ProcessCount: u64(3)}}
	for name, n := range r.cpu {
		box.Containers = append(box.Containers, &runtimeapi.ContainerStats{
			Attributes: &runtimeapi.ContainerAttributes{Id: "id-" + name, Labels: map[string]string{podspec.LabelPodUID: "u", podspec.LabelContainer: name}},
			Cpu:        &runtimeapi.CpuUsage{UsageCoreNanoSeconds: u64(n)}, Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: u64(100)},
		})
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{{
		Attributes: &runtimeapi.PodSandboxAttributes{Labels: map[string]string{podspec.LabelPodUID: "u"}}, Linux: box}}}, nil
}

func u64(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

func TestRates(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	rt := &runtime{cpu: map[string]uint64{"a": 5e9}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u"}}
	dir := t.TempDir()
	m := New(Config{NodeName: "node", CRI: &cri.Client{Runtime: rt}, Pods: func() []*corev1.Pod { return []*corev1.Pod{pod} },
		Volumes: func(string) []string { return nil }, LogRoot: dir, Root: dir, Clock: clk})
	read := func() *Reading {
		t.Helper()
		r, err := m.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	rates := func(r *Reading) map[string]uint64 {
		out := map[string]uint64{}
		for _, c := range r.Pods[0].Containers {
			if c.CPU.UsageNanoCores != nil {
				out[c.Name] = *c.CPU.UsageNanoCores
			}
		}
		return out
	}
	// The first answer measures twice.
	done := make(chan *Reading, 1)
	go func() { done <- read() }()
	for !clk.HasWaiters() {
	}
	rt.cpu["a"] = 6e9
	clk.Step(minWindow)
	r := <-done
	if got := rates(r)["a"]; got != 2e9 || r.Window != minWindow {
		t.Errorf("rate %d over %v, want two cores over %v", got, r.Window, minWindow)
	}
	if p := r.Pods[0]; *p.Memory.WorkingSetBytes != 100 || *p.ProcessStats.ProcessCount != 3 || *p.CPU.UsageNanoCores != 2e9 {
		t.Errorf("pod: %+v", p)
	}
	// A young answer is given again.
	calls := rt.calls
	if again := read(); again != r || rt.calls != calls {
		t.Error("measured again within a second")
	}
	// The next is over the time since; what began meanwhile counts from its start.
	clk.Step(10 * time.Second)
	rt.cpu["a"], rt.cpu["b"] = 7e9, 1e9
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "b", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(clk.Now().Add(-4 * time.Second))}}}}
	r = read()
	if got := rates(r); got["a"] != 1e8 || got["b"] != 25e7 || rt.calls != calls+1 {
		t.Errorf("rates %v after %d calls", got, rt.calls-calls)
	}
	// A container that began anew has counted less than before: no rate.
	clk.Step(10 * time.Second)
	rt.cpu["a"] = 1
	if got, ok := rates(read())["a"]; ok {
		t.Errorf("rate %d of a counter that went back", got)
	}
}

func TestDiskUse(t *testing.T) {
	dir := t.TempDir()
	write := func(path string, n int) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("n_p_u/a/0.log", 100<<10)
	write("pod/volumes/kubernetes.io~empty-dir/scratch/x", 200<<10)
	memory := filepath.Join(dir, "memory")
	if err := os.Mkdir(memory, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(memory, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	write("memory/other/secret/x", 500<<10)
	write("memory/u/secret/x", 50<<10)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u"}}
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	m := New(Config{CRI: &cri.Client{Runtime: &runtime{cpu: map[string]uint64{"a": 0}}}, Pods: func() []*corev1.Pod { return []*corev1.Pod{pod} },
		Volumes: func(string) []string {
			return []string{filepath.Join(dir, "pod/volumes/kubernetes.io~empty-dir/scratch"), filepath.Join(memory, "u/secret")}
		}, LogRoot: dir, Root: dir, Clock: clk})
	go func() {
		for !clk.HasWaiters() {
		}
		clk.Step(minWindow)
	}()
	s, err := m.ReadAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := s.Pods[0]
	if got := *p.Containers[0].Logs.UsedBytes; got < 100<<10 || got > 120<<10 {
		t.Errorf("logs use %d", got)
	}
	if len(p.VolumeStats) != 2 || p.VolumeStats[0].Name != "scratch" || *p.VolumeStats[0].UsedBytes < 200<<10 ||
		p.VolumeStats[1].Name != "secret" || *p.VolumeStats[1].UsedBytes > 100<<10 || *p.VolumeStats[1].CapacityBytes == *p.VolumeStats[0].CapacityBytes {
		t.Errorf("volumes: %+v", p.VolumeStats)
	}
	if got := *p.EphemeralStorage.UsedBytes; got < 300<<10 || got > 340<<10 {
		t.Errorf("ephemeral storage: %d", got)
	}
	if s.Node.Fs == nil || *s.Node.Fs.CapacityBytes == 0 || s.Node.Rlimit == nil || *s.Node.Rlimit.NumOfRunningProcesses == 0 {
		t.Errorf("node: %+v", s.Node)
	}
}
