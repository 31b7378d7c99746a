package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

const apiWindow = 4 * time.Second

// api measures the API server with 1 KiB ConfigMaps over HTTPS, the load in this
// process: both share the machine's cores.
func api(ctx context.Context, c *cluster) ([]row, error) {
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	maps := c.client.CoreV1().ConfigMaps("bench")
	var n atomic.Int64
	create := func() error {
		_, err := maps.Create(ctx, oneKiB(fmt.Sprintf("c-%d", n.Add(1))), metav1.CreateOptions{})
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
	more, err := lists(ctx, c)
	if err != nil {
		return nil, err
	}
	rows = append(rows, more...)
	delay, err := watchDelay(ctx, maps)
	if err != nil {
		return nil, err
	}
	rows = append(rows, row{"create to watch event, p50 / p99", p50p99(delay), "<= 0.8 / 3 ms"})
	return rows, c.client.CoreV1().Namespaces().Delete(ctx, "bench", metav1.DeleteOptions{})
}

// oneKiB is the object that the API is measured with.
func oneKiB(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"data": strings.Repeat("x", 1024)}}
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
func lists(ctx context.Context, c *cluster) ([]row, error) {
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "list"}}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	maps := c.client.CoreV1().ConfigMaps("list")
	err := each(5000, func(i int) error {
		_, err := maps.Create(ctx, oneKiB(fmt.Sprintf("l-%d", i)), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	var rows []row
	var size int64
	for _, f := range []struct{ what, accept, target string }{
		{"list 5,000, JSON, raw bytes, p50 / p99", "application/json", "<= 12 ms"},
		{"list 5,000, protobuf, raw bytes, p50 / p99", "application/vnd.kubernetes.protobuf", "<= 6 ms"},
	} {
		var took []time.Duration
		for range 20 {
			at := time.Now()
			body, err := c.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces/list/configmaps").
				SetHeader("Accept", f.accept).SetHeader("Accept-Encoding", "identity").Stream(ctx)
			if err != nil {
				return nil, err
			}
			if size, err = drain(body); err != nil {
				return nil, err
			}
			took = append(took, time.Since(at))
		}
		rows = append(rows, row{f.what, p50p99(took), f.target})
	}
	took, err := transport(ctx, size)
	if err != nil {
		return nil, err
	}
	rows = append(rows, row{fmt.Sprintf("for comparison: %.1f MB that need no work, p50 / p99", float64(size)/1e6), p50p99(took), ""})
	return rows, c.client.CoreV1().Namespaces().Delete(ctx, "list", metav1.DeleteOptions{})
}

func drain(body io.ReadCloser) (int64, error) {
	defer body.Close()
	return io.Copy(io.Discard, body)
}

// transport measures what HTTP/2 over TLS takes for an answer of a size, with Go's
// own server and client and nothing else.
func transport(ctx context.Context, size int64) ([]time.Duration, error) {
	answer := make([]byte, size)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		_, _ = w.Write(answer) // a client that leaves fails below
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	var took []time.Duration
	for range 20 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		if err != nil {
			return nil, err
		}
		at := time.Now()
		resp, err := srv.Client().Do(req)
		if err != nil {
			return nil, err
		}
		if _, err := drain(resp.Body); err != nil {
			return nil, err
		}
		took = append(took, time.Since(at))
	}
	return took, nil
}

func watchDelay(ctx context.Context, maps typedcorev1.ConfigMapInterface) ([]time.Duration, error) {
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
		go func() { _, _ = maps.Create(ctx, oneKiB(name), metav1.CreateOptions{}) }()
		select {
		case <-seen:
			took = append(took, time.Since(at))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return took, nil
}
