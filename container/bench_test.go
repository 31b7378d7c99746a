package container

import (
	"os"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// quantiles reports the middle and the worst percent, which a mean hides.
func quantiles(b *testing.B, took []time.Duration) {
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkSandbox: what a pod costs before its first container.
func BenchmarkSandbox(b *testing.B) {
	f := newFixture(b)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		id := f.sandbox(nil)
		took = append(took, time.Since(start))
		b.StopTimer()
		if _, err := f.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	quantiles(b, took)
}

// BenchmarkCreateStart: from CreateContainer to the program's execution.
func BenchmarkCreateStart(b *testing.B) {
	f := newFixture(b)
	pod := f.sandbox(nil)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		id := f.run(pod, "exec sleep 1000", nil)
		took = append(took, time.Since(start))
		b.StopTimer()
		if _, err := f.RemoveContainer(f.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	quantiles(b, took)
}

// BenchmarkRemoveRunning: kill, wait, and clear away.
func BenchmarkRemoveRunning(b *testing.B) {
	f := newFixture(b)
	pod := f.sandbox(nil)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		id := f.run(pod, "exec sleep 1000", nil)
		b.StartTimer()
		start := time.Now()
		if _, err := f.RemoveContainer(f.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	quantiles(b, took)
}

// BenchmarkExec: a whole ExecSync of true.
func BenchmarkExec(b *testing.B) {
	f := newFixture(b)
	id := f.run(f.sandbox(nil), "exec sleep 1000", nil)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		f.exec(id, "true")
		took = append(took, time.Since(start))
	}
	quantiles(b, took)
}

// BenchmarkPods: many pods at once stay cheap; reports each one's share.
func BenchmarkPods(b *testing.B) {
	f := newFixture(b)
	const pods = 50
	most := 0
	for b.Loop() {
		var ids []string
		before := resident(b)
		for range pods {
			id := f.sandbox(nil)
			f.run(id, "exec sleep 1000", nil)
			ids = append(ids, id)
		}
		b.StopTimer()
		if grown := (resident(b) - before) / pods; grown > most {
			most = grown
		}
		for _, id := range ids {
			if _, err := f.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N)/pods, "ms/pod")
	b.ReportMetric(float64(most), "KB-own-RSS/pod")
}

// resident is this process' memory in KB.
func resident(b *testing.B) int {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return n
}
