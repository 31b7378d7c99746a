package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/apiserver/apitest"
)

// The benchmarks use an embedded etcd with fsync and 1 KiB ConfigMaps, and a
// protobuf client in the same process: CPU figures (cpu-µs/op) are of both.

func bench(b *testing.B) (*apitest.Server, *kubernetes.Clientset) {
	b.Helper()
	s := apitest.Start(b, apitest.Options{Etcd: true, Unwatched: true})
	cfg := s.Admin(b)
	cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf"
	c := apitest.ClientOf(b, cfg)
	must(c.CoreV1().ConfigMaps("default").Create(b.Context(), oneKiB("warm"), metav1.CreateOptions{}))(b)
	return s, c
}

func oneKiB(name string) *corev1.ConfigMap { return configMap(name, "k", strings.Repeat("x", 1024)) }

func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spread runs b.N operations by n workers and reports the rate, the median and
// the CPU.
func spread(b *testing.B, n int, op func(ctx context.Context, i int) error) {
	b.Helper()
	var next atomic.Int64
	took := make([]time.Duration, b.N)
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	busy, start := cpu(), time.Now()
	for range n {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= b.N {
					return
				}
				t := time.Now()
				if err := op(b.Context(), i); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(t)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "op/s")
	b.ReportMetric(float64(took[b.N/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64((cpu()-busy).Microseconds())/float64(b.N), "cpu-µs/op")
}

// Create: the whole write path, to the disk and back through the watch.
func BenchmarkCreate(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, c := bench(b)
			spread(b, n, func(ctx context.Context, i int) error {
				_, err := c.CoreV1().ConfigMaps("default").Create(ctx, oneKiB(fmt.Sprint("c", i)), metav1.CreateOptions{})
				return err
			})
		})
	}
}

// Get: what a request costs without a write.
func BenchmarkGet(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, c := bench(b)
			spread(b, n, func(ctx context.Context, _ int) error {
				_, err := c.CoreV1().ConfigMaps("default").Get(ctx, "warm", metav1.GetOptions{})
				return err
			})
		})
	}
}

// Apply and merge patch: the decoding and ownership work, on objects of each worker's own.
func BenchmarkPatch(b *testing.B) {
	for name, p := range map[string]struct {
		typ  types.PatchType
		body string
		opts metav1.PatchOptions
	}{
		"apply": {types.ApplyPatchType, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"NAME"},"data":{"k":"VALUE"}}`, metav1.PatchOptions{FieldManager: "bench", Force: new(true)}},
		"merge": {types.MergePatchType, `{"data":{"k":"VALUE"}}`, metav1.PatchOptions{}},
	} {
		b.Run(name, func(b *testing.B) {
			_, c := bench(b)
			const objects = 256
			for i := range objects {
				must(c.CoreV1().ConfigMaps("default").Create(b.Context(), oneKiB(fmt.Sprint("p", i)), metav1.CreateOptions{}))(b)
			}
			value := strings.Repeat("y", 1000)
			spread(b, 64, func(ctx context.Context, i int) error {
				name := fmt.Sprint("p", i%objects)
				body := strings.NewReplacer("NAME", name, "VALUE", fmt.Sprint(i, value)).Replace(p.body)
				_, err := c.CoreV1().ConfigMaps("default").Patch(ctx, name, p.typ, []byte(body), p.opts)
				return err
			})
		})
	}
}

// List of 5,000: joining shared bytes and sending them, raw.
func BenchmarkList5000(b *testing.B) {
	s, c := bench(b)
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < 5000; i += 32 {
				if _, err := c.CoreV1().ConfigMaps("default").Create(b.Context(), oneKiB(fmt.Sprint("l", i)), metav1.CreateOptions{}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p := newPeer(b, s.Admin(b))
	for _, media := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		b.Run(strings.TrimPrefix(media, "application/"), func(b *testing.B) {
			spread(b, 1, func(ctx context.Context, _ int) error {
				req, err := http.NewRequestWithContext(ctx, "GET", p.url+"/api/v1/namespaces/default/configmaps", nil)
				if err != nil {
					return err
				}
				req.Header.Set("Accept", media)
				req.Header.Set("Accept-Encoding", "identity")
				resp, err := p.http.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				_, err = io.Copy(io.Discard, resp.Body)
				return err
			})
		})
	}
}

// Create to event: how late a watcher learns of a write, from before the request.
func BenchmarkCreateToWatch(b *testing.B) {
	_, c := bench(b)
	w := must(c.CoreV1().ConfigMaps("default").Watch(b.Context(), metav1.ListOptions{}))(b)
	defer w.Stop()
	<-w.ResultChan() // the object that is there
	took := make([]time.Duration, b.N)
	b.ResetTimer()
	for i := range b.N {
		t := time.Now()
		done := make(chan error, 1)
		go func() {
			_, err := c.CoreV1().ConfigMaps("default").Create(b.Context(), oneKiB(fmt.Sprint("w", i)), metav1.CreateOptions{})
			done <- err
		}()
		<-w.ResultChan()
		took[i] = time.Since(t)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[b.N/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[b.N*99/100].Microseconds()), "p99-µs")
}

// Thousand watchers: one event to all of them, raw streams over HTTP/2.
func BenchmarkThousandWatchers(b *testing.B) {
	s, c := bench(b)
	const watchers, perConn = 1000, 200
	got := make(chan struct{}, watchers)
	for i := 0; i < watchers; i += perConn {
		p := newPeer(b, s.Admin(b))
		for range perConn {
			req := must(http.NewRequestWithContext(b.Context(), "GET", p.url+"/api/v1/namespaces/default/configmaps?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", nil))(b)
			resp := must(p.http.Do(req))(b)
			if resp.StatusCode != 200 {
				b.Fatal(resp.Status)
			}
			b.Cleanup(func() { resp.Body.Close() })
			go func() {
				buf := make([]byte, 8<<10)
				for {
					n, err := resp.Body.Read(buf)
					for _, ch := range buf[:n] {
						if ch == '\n' {
							got <- struct{}{}
						}
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}
	b.ResetTimer()
	for i := range b.N {
		must(c.CoreV1().ConfigMaps("default").Create(b.Context(), oneKiB(fmt.Sprint("t", i)), metav1.CreateOptions{}))(b)
		for range watchers {
			<-got
		}
	}
}

// TypeConverter: what the first write of a manager waits for, once a process.
func BenchmarkTypeConverter(b *testing.B) {
	b.ReportAllocs()
	for range b.N {
		applyconfigurations.NewTypeConverter(scheme.Scheme)
	}
}
