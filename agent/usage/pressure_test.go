package usage

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The machine's is told where the kernel has it, and left out where not.
func TestNodePressure(t *testing.T) {
	dir, now := t.TempDir(), metav1.NewTime(time.Unix(1000, 0))
	for _, name := range []string{"cpu", "memory", "io"} {
		n := stats.NodeStats{CPU: &stats.CPUStats{}, Memory: &stats.MemoryStats{}}
		nodePressure(&n, dir, now)
		if name == "cpu" && (n.CPU.PSI != nil || n.Memory.PSI != nil || n.IO != nil) {
			t.Errorf("without the kernel's files: %+v", n)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("some avg10=2.00 avg60=0.00 avg300=0.00 total=3\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		nodePressure(&n, dir, now)
		got := map[string]*stats.PSIStats{"cpu": n.CPU.PSI, "memory": n.Memory.PSI}
		if n.IO != nil {
			got["io"] = n.IO.PSI
		}
		if p := got[name]; p == nil || p.Some.Total != 3000 || p.Some.Avg10 != 2 {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// Pressure does not add up: a pod that the runtime has no figures of has none.
func TestPressureOfPods(t *testing.T) {
	p := &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Total: 5, Avg10: 1}, Full: &runtimeapi.PsiData{Total: 4}}
	c := cpu(&runtimeapi.CpuUsage{Psi: p})
	want := &stats.PSIStats{Some: stats.PSIData{Total: 5, Avg10: 1}, Full: stats.PSIData{Total: 4}}
	if m := memory(&runtimeapi.MemoryUsage{Psi: p}); !reflect.DeepEqual(c.PSI, want) || !reflect.DeepEqual(m.PSI, want) {
		t.Errorf("converted to %+v and %+v", c.PSI, m.PSI)
	}
	if s := addCPU(nil, c); s.PSI != nil {
		t.Errorf("the sum of one has %+v", s.PSI)
	}
	if s := addMemory(nil, &stats.MemoryStats{PSI: want}); s.PSI != nil {
		t.Errorf("the sum of one has %+v", s.PSI)
	}
	if inputOutput(&runtimeapi.IoUsage{Timestamp: 1}) != nil || inputOutput(nil) != nil {
		t.Error("I/O without figures is there")
	}
	if io := inputOutput(&runtimeapi.IoUsage{Timestamp: 1, Psi: p}); !reflect.DeepEqual(io.PSI, want) {
		t.Errorf("I/O: %+v", io)
	}
}
