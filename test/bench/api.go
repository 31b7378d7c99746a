package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

const apiWindow = 4 * time.Second

// api measures the API server with 1 KiB ConfigMaps over HTTPS, the load in this
// process: both share the machine's cores.
func api(ctx context.Context, c *cluster) ([]row, error) {
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	maps := c.client.CoreV1().ConfigMaps("bench")
	data := map[string]string{"data": strings.Repeat("x", 1024)}
	object := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	}
	var n atomic.Int64
	create := func() error {
		_, err := maps.Create(ctx, object(fmt.Sprintf("c-%d", n.Add(1))), metav1.CreateOptions{})
		return err
	}
	get := func() error {
		_, err := maps.Get(ctx, fmt.Sprintf("c-%d", 1+n.Add(1)%1000), metav1.GetOptions{})
		return err
	}
	var p atomic.Int64
	patch := func() error {
		i := p.Add(1)
		_, err := maps.Patch(ctx, fmt.Sprintf("c-%d", 1+i%1000), types.MergePatchType, fmt.Appendf(nil, `{"data":{"n":"%d"}}`, i), metav1.PatchOptions{})
		return err
	}
	apply := func() error {
		i := p.Add(1)
		name := fmt.Sprintf("c-%d", 1+i%1000)
		body := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"applied":"%d"}}`, name, i)
		_, err := maps.Patch(ctx, name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "bench"})
		return err
	}
	var rows []row
	for _, m := range []struct {
		what    string
		workers int
		do      func() error
		target  string
	}{
		{"create, 1 writer", 1, create, ">= 1200/s, 0.7 ms"},
		{"create, 64 writers", 64, create, ">= 8000/s"},
		{"get, 1 reader", 1, get, ">= 4000/s, 0.25 ms"},
		{"get, 64 readers", 64, get, ">= 12000/s"},
		{"server-side apply, 64", 64, apply, ">= 5000/s"},
		{"merge patch, 64", 64, patch, ">= 6000/s"},
	} {
		stop := c.profileCPU(ctx, "api, "+m.what, apiWindow)
		r, err := rate(c, m.workers, m.do)
		stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.what, err)
		}
		rows = append(rows, row{m.what, r, m.target})
	}
	more, err := lists(ctx, c, object)
	if err != nil {
		return nil, err
	}
	rows = append(rows, more...)
	delay, err := watchDelay(ctx, maps, object)
	if err != nil {
		return nil, err
	}
	rows = append(rows, row{"create to watch event, p50 / p99", p50p99(delay), "<= 0.8 / 3 ms"})
	return rows, c.client.CoreV1().Namespaces().Delete(ctx, "bench", metav1.DeleteOptions{})
}

// rate repeats do in several workers for a while; it reports requests a second,
// the median time and the server's CPU for each request.
func rate(c *cluster, workers int, do func() error) (string, error) {
	before, err := cpuTime(c.proc.Process.Pid)
	if err != nil {
		return "", err
	}
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	end := time.Now().Add(apiWindow)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			var mine []time.Duration
			for time.Now().Before(end) {
				at := time.Now()
				if err := do(); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if failed != nil {
		return "", failed
	}
	after, err := cpuTime(c.proc.Process.Pid)
	if err != nil {
		return "", err
	}
	each := float64((after - before).Microseconds()) / 1000 / float64(len(all))
	return fmt.Sprintf("%.0f/s, %s ms, CPU %.2f ms", float64(len(all))/apiWindow.Seconds(), millis(quantile(all, .5)), each), nil
}

// lists fills a namespace with 5,000 objects and reads it whole, as bytes.
func lists(ctx context.Context, c *cluster, object func(string) *corev1.ConfigMap) ([]row, error) {
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "list"}}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	maps := c.client.CoreV1().ConfigMaps("list")
	var n atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for range 64 {
		wg.Go(func() {
			for i := n.Add(1); i <= 5000; i = n.Add(1) {
				if _, err := maps.Create(ctx, object(fmt.Sprintf("l-%d", i)), metav1.CreateOptions{}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return nil, err
	}
	var rows []row
	for _, f := range []struct{ what, accept, target string }{
		{"list 5,000, JSON, raw bytes, p50 / p99", "application/json", "<= 12 ms"},
		{"list 5,000, protobuf, raw bytes, p50 / p99", "application/vnd.kubernetes.protobuf", "<= 6 ms"},
	} {
		var took []time.Duration
		for range 20 {
			at := time.Now()
			if err := readAll(ctx, c.client.CoreV1().RESTClient(), f.accept); err != nil {
				return nil, err
			}
			took = append(took, time.Since(at))
		}
		rows = append(rows, row{f.what, p50p99(took), f.target})
	}
	return rows, c.client.CoreV1().Namespaces().Delete(ctx, "list", metav1.DeleteOptions{})
}

func readAll(ctx context.Context, c rest.Interface, accept string) error {
	body, err := c.Get().AbsPath("/api/v1/namespaces/list/configmaps").SetHeader("Accept", accept).SetHeader("Accept-Encoding", "identity").Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(io.Discard, body)
	return err
}

func watchDelay(ctx context.Context, maps typedcorev1.ConfigMapInterface, object func(string) *corev1.ConfigMap) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	w, err := maps.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	seen := make(chan string, 16)
	go func() {
		for e := range w.ResultChan() {
			if m, ok := e.Object.(*corev1.ConfigMap); ok && strings.HasPrefix(m.Name, "w-") {
				seen <- m.Name
			}
		}
	}()
	var took []time.Duration
	for i := range 300 {
		name := fmt.Sprintf("w-%d", i)
		at := time.Now()
		go func() { _, _ = maps.Create(ctx, object(name), metav1.CreateOptions{}) }()
		select {
		case <-seen:
			took = append(took, time.Since(at))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return took, nil
}
