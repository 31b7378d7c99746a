package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

func unversioned(c *rest.Config) *rest.Config {
	c.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	return c
}

// fill creates n ConfigMaps of 1 KiB by 64 writers.
func (s *server) fill(ctx context.Context, namespace string, n int64) error {
	if err := s.namespace(ctx, namespace); err != nil {
		return err
	}
	maps := s.client.CoreV1().ConfigMaps(namespace)
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for range 64 {
		wg.Go(func() {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				if _, err := maps.Create(ctx, configMap(fmt.Sprintf("l-%d", i)), metav1.CreateOptions{}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// lists reads a namespace of 5,000 objects whole, as bytes.
func lists(ctx context.Context, s *server) ([]figure, error) {
	if err := s.fill(ctx, "list", 5000); err != nil {
		return nil, err
	}
	var out []figure
	for _, f := range []struct{ what, accept string }{{"list 5,000, JSON", "application/json"}, {"list 5,000, protobuf", "application/vnd.kubernetes.protobuf"}} {
		var took []time.Duration
		before, err := s.cpu()
		if err != nil {
			return nil, err
		}
		const n = 30
		for range n {
			at := time.Now()
			if err := s.readAll(ctx, f.accept); err != nil {
				return nil, err
			}
			took = append(took, time.Since(at))
		}
		after, err := s.cpu()
		if err != nil {
			return nil, err
		}
		out = append(out, figure{f.what, fmt.Sprintf("%s, CPU %.1f ms", p50p99(took), (after-before).Seconds()*1000/n)})
	}
	return out, nil
}

func (s *server) readAll(ctx context.Context, accept string) error {
	body, err := s.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces/list/configmaps").SetHeader("Accept", accept).SetHeader("Accept-Encoding", "identity").Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(io.Discard, body)
	return err
}

// watchDelay is the time from a create's start to its event in a watch.
func watchDelay(ctx context.Context, s *server) ([]figure, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.namespace(ctx, "watch"); err != nil {
		return nil, err
	}
	maps := s.client.CoreV1().ConfigMaps("watch")
	w, err := maps.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	var took []time.Duration
	for i := range 500 {
		name := fmt.Sprintf("w-%d", i)
		at := time.Now()
		failed := make(chan error, 1)
		go func() {
			_, err := maps.Create(ctx, configMap(name), metav1.CreateOptions{})
			failed <- err
		}()
		for seen := false; !seen; {
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					return nil, fmt.Errorf("the watch ended before %s", name)
				}
				m, ok := e.Object.(*corev1.ConfigMap)
				seen = ok && m.Name == name
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		took = append(took, time.Since(at))
		if err := <-failed; err != nil {
			return nil, err
		}
	}
	return []figure{{"create to watch event", p50p99(took)}}, nil
}

// fanOut is the time from a create's start until every watcher has its event.
func fanOut(ctx context.Context, s *server) ([]figure, error) {
	var out []figure
	for _, n := range []int{1, 100, 1000} {
		took, err := s.fanOutTo(ctx, n)
		if err != nil {
			return nil, err
		}
		out = append(out, figure{fmt.Sprintf("%d watchers, an event to all", n), p50p99(took)})
	}
	return out, nil
}

func (s *server) fanOutTo(ctx context.Context, n int) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	namespace := fmt.Sprintf("fan-%d", n)
	if err := s.namespace(ctx, namespace); err != nil {
		cancel()
		return nil, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	seen := make(chan struct{}, n)
	for range n {
		body, err := s.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces/"+namespace+"/configmaps").Param("watch", "1").SetHeader("Accept", "application/json").Stream(ctx)
		if err != nil {
			return nil, err
		}
		wg.Go(func() {
			defer body.Close()
			for r := bufio.NewReader(body); ; {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return
				}
				if bytes.Contains(line, []byte(`"fan-`)) {
					seen <- struct{}{}
				}
			}
		})
	}
	maps := s.client.CoreV1().ConfigMaps(namespace)
	var took []time.Duration
	for i := range 30 {
		at := time.Now()
		if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("fan-%d", i)}}, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		for range n {
			select {
			case <-seen:
			case <-ctx.Done():
				return nil, fmt.Errorf("not all of %d watchers have event %d: %w", n, i, ctx.Err())
			}
		}
		took = append(took, time.Since(at))
	}
	return took, nil
}

// memory is what the groups before left, then with many more objects.
func memory(ctx context.Context, s *server) ([]figure, error) {
	read := func(what string) (figure, error) {
		if err := pause(ctx, 10*time.Second); err != nil {
			return figure{}, err
		}
		pss, anon, err := s.rss()
		return figure{what, fmt.Sprintf("%d MiB (%d)", pss, anon)}, err
	}
	before, err := read("memory after the run, PSS (anon)")
	if err != nil {
		return nil, err
	}
	if err := s.fill(ctx, "memory", int64(s.objects)); err != nil {
		return nil, err
	}
	after, err := read(fmt.Sprintf("memory with %d objects of 1 KiB more", s.objects))
	return []figure{before, after}, err
}
