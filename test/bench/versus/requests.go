package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

var kib = strings.Repeat("x", 1024)

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"data": kib}}
}

func (s *server) namespace(ctx context.Context, name string) error {
	_, err := s.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

// kind is what requests are made of; each does one.
type kind struct {
	create, get func(ctx context.Context, name string) error
	patch       func(ctx context.Context, name string, t types.PatchType, body []byte) error
	merge       string // bodies, with a name and a number to fill in
	apply       string
}

// builtin measures 1 KiB ConfigMaps with the typed client.
func builtin(ctx context.Context, s *server) ([]figure, error) {
	if err := s.namespace(ctx, "builtin"); err != nil {
		return nil, err
	}
	maps := s.client.CoreV1().ConfigMaps("builtin")
	return s.requests(ctx, "", kind{
		create: func(ctx context.Context, name string) error {
			_, err := maps.Create(ctx, configMap(name), metav1.CreateOptions{})
			return err
		},
		get: func(ctx context.Context, name string) error {
			_, err := maps.Get(ctx, name, metav1.GetOptions{})
			return err
		},
		patch: func(ctx context.Context, name string, t types.PatchType, body []byte) error {
			o := metav1.PatchOptions{}
			if t == types.ApplyPatchType {
				o.FieldManager = "bench"
			}
			_, err := maps.Patch(ctx, name, t, body, o)
			return err
		},
		merge: `{"metadata":{"name":%q},"data":{"n":"%d"}}`,
		apply: `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"applied":"%d"}}`,
	})
}

var loads = schema.GroupVersionResource{Group: "bench.knarr.dev", Version: "v1", Resource: "loads"}

const crd = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"loads.bench.knarr.dev"},
"spec":{"group":"bench.knarr.dev","scope":"Namespaced","names":{"plural":"loads","singular":"load","kind":"Load","listKind":"LoadList"},
"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object",
"properties":{"data":{"type":"string"},"n":{"type":"string","default":"none"},"applied":{"type":"string"},"ports":{"type":"array","items":{"type":"integer","minimum":1}}}}}}}}]}}`

// custom measures a custom resource with the dynamic client.
func custom(ctx context.Context, s *server) ([]figure, error) {
	if err := s.namespace(ctx, "custom"); err != nil {
		return nil, err
	}
	if err := s.client.CoreV1().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
		SetHeader("Content-Type", "application/json").Body([]byte(crd)).Do(ctx).Error(); err != nil {
		return nil, err
	}
	d, err := dynamic.NewForConfig(s.config)
	if err != nil {
		return nil, err
	}
	things := d.Resource(loads).Namespace("custom")
	k := kind{
		create: func(ctx context.Context, name string) error {
			_, err := things.Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "bench.knarr.dev/v1", "kind": "Load",
				"metadata": map[string]any{"name": name}, "spec": map[string]any{"data": kib, "ports": []any{int64(80), int64(443)}}}}, metav1.CreateOptions{})
			return err
		},
		get: func(ctx context.Context, name string) error {
			_, err := things.Get(ctx, name, metav1.GetOptions{})
			return err
		},
		patch: func(ctx context.Context, name string, t types.PatchType, body []byte) error {
			o := metav1.PatchOptions{}
			if t == types.ApplyPatchType {
				o.FieldManager = "bench"
			}
			_, err := things.Patch(ctx, name, t, body, o)
			return err
		},
		merge: `{"metadata":{"name":%q},"spec":{"n":"%d"}}`,
		apply: `{"apiVersion":"bench.knarr.dev/v1","kind":"Load","metadata":{"name":%q},"spec":{"applied":"%d"}}`,
	}
	// A new kind is served a moment after its definition was stored.
	for end := time.Now().Add(20 * time.Second); ; {
		if err := k.create(ctx, "first"); err == nil {
			return s.requests(ctx, "custom resources: ", k)
		} else if time.Now().After(end) {
			return nil, err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// requests measures the requests of a kind, one after the other.
func (s *server) requests(ctx context.Context, prefix string, k kind) ([]figure, error) {
	var created, read, patched atomic.Int64
	name := func(i int64) string { return fmt.Sprintf("c-%d", 1+i%1000) }
	create := func() error { return k.create(ctx, fmt.Sprintf("c-%d", created.Add(1))) }
	for range 1000 { // what gets and patches meet
		if err := create(); err != nil {
			return nil, err
		}
	}
	get := func() error { return k.get(ctx, name(read.Add(1))) }
	merge := func() error {
		i := patched.Add(1)
		return k.patch(ctx, name(i), types.MergePatchType, fmt.Appendf(nil, k.merge, name(i), i))
	}
	apply := func() error {
		i := patched.Add(1)
		return k.patch(ctx, name(i), types.ApplyPatchType, fmt.Appendf(nil, k.apply, name(i), i))
	}
	var out []figure
	for _, m := range []struct {
		what    string
		workers int
		do      func() error
	}{{"create, 1 writer", 1, create}, {"create, 64 writers", 64, create}, {"get, 1 reader", 1, get}, {"get, 64 readers", 64, get}, {"server-side apply, 64", 64, apply}, {"merge patch, 64", 64, merge}} {
		f, err := s.rate(ctx, prefix+m.what, m.workers, m.do)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.what, err)
		}
		out = append(out, f)
	}
	return out, nil
}

// rate repeats do in several workers for the window; it reports requests a second,
// the median time and the server's CPU for each request.
func (s *server) rate(ctx context.Context, what string, workers int, do func() error) (figure, error) {
	stop := s.profile(ctx, what)
	defer stop()
	before, err := s.cpu()
	if err != nil {
		return figure{}, err
	}
	took := make([][]time.Duration, workers)
	errs := make([]error, workers)
	end := time.Now().Add(s.window)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for time.Now().Before(end) && errs[w] == nil {
				at := time.Now()
				errs[w] = do()
				took[w] = append(took[w], time.Since(at))
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return figure{}, err
		}
	}
	after, err := s.cpu()
	if err != nil {
		return figure{}, err
	}
	all := slices.Concat(took...)
	each := (after - before).Seconds() * 1000 / float64(len(all))
	return figure{what, fmt.Sprintf("%.0f/s, %s ms, CPU %.2f ms", float64(len(all))/s.window.Seconds(), millis(quantile(all, .5)), each)}, nil
}

// profile takes a CPU profile of knarr for the window.
func (s *server) profile(ctx context.Context, what string) (stop func()) {
	if s.profiles == "" || s.node == "" {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.fetch(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(s.window.Seconds())), strings.NewReplacer(" ", "-", ",", "", ":", "").Replace(what)+".cpu"); err != nil {
			fmt.Fprintf(os.Stderr, "versus: profile of %s: %v\n", what, err)
		}
	}()
	return func() { <-done }
}

func (s *server) fetch(ctx context.Context, path, file string) error {
	conf := rest.CopyConfig(s.config)
	conf.Host, conf.Insecure, conf.CAData, conf.CAFile = s.node, true, nil, ""
	c, err := rest.UnversionedRESTClientFor(unversioned(conf))
	if err != nil {
		return err
	}
	b, err := c.Get().RequestURI(path).DoRaw(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.profiles, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.profiles, file), b, 0o600)
}

func quantile(all []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(all))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1000) }

func p50p99(all []time.Duration) string {
	return fmt.Sprintf("%s / %s ms", millis(quantile(all, .5)), millis(quantile(all, .99)))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
