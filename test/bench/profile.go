package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// profileCPU takes profiles of the CPU and of what is allocated in the next moments;
// stop waits for them.
func (c *cluster) profileCPU(ctx context.Context, name string, window time.Duration) (stop func()) {
	if c.profiles == "" {
		return func() {}
	}
	var both sync.WaitGroup
	for kind, file := range map[string]string{"profile": "cpu", "allocs": "allocated"} {
		both.Go(func() { c.fetch(ctx, fmt.Sprintf("%s?seconds=%.0f", kind, window.Seconds()), name+"."+file) })
	}
	return both.Wait
}

// profile takes a CPU profile (of the group api its rows take theirs) and, when stop
// is called, profiles of heap, allocations and goroutines and an execution trace,
// from the node's kubelet API.
func (c *cluster) profile(ctx context.Context, name string) (stop func()) {
	if c.profiles == "" {
		return func() {}
	}
	cpu := func() {}
	if name != "api" {
		cpu = c.profileCPU(ctx, name, 10*time.Second)
	}
	return func() {
		cpu()
		for _, kind := range []string{"heap", "goroutine", "allocs"} {
			c.fetch(ctx, kind, name+"."+kind)
		}
		c.fetch(ctx, "trace?seconds=10", name+".trace")
	}
}

// fetch writes one profile to a file; a failure is reported, it spoils no figure.
func (c *cluster) fetch(ctx context.Context, path, file string) {
	err := func() error {
		conf := rest.CopyConfig(c.config)
		conf.Insecure, conf.CAData, conf.CAFile = true, nil, ""
		hc, err := rest.HTTPClientFor(conf)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.0.1:16250/debug/pprof/"+path, nil)
		if err != nil {
			return err
		}
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("the node answered %s", resp.Status)
		}
		f, err := os.Create(filepath.Join(c.profiles, file))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(f, resp.Body)
		return err
	}()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: profile %s: %v\n", file, err)
	}
}
