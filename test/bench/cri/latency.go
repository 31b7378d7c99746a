package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// spread prints the middle and the 99th percentile of durations.
func spread(took []time.Duration) string {
	slices.Sort(took)
	return fmt.Sprintf("%s / %s", ms(took[len(took)/2]), ms(took[len(took)*99/100]))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

// starts: from RunPodSandbox until the container's program runs.
func starts(ctx context.Context, o options, d *driver, note func(what, figure string)) error {
	var took []time.Duration
	for range o.runs {
		begin := time.Now()
		p, err := d.run(ctx)
		if err != nil {
			return err
		}
		took = append(took, time.Since(begin))
		if err := d.remove(ctx, p.sandbox); err != nil {
			return err
		}
	}
	note("sandbox and container, until it runs, ms p50 / p99", spread(took))
	return nil
}

func execs(ctx context.Context, o options, d *driver, note func(what, figure string)) error {
	p, err := d.run(ctx)
	if err != nil {
		return err
	}
	var took []time.Duration
	for range o.runs {
		begin := time.Now()
		r, err := d.client.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}})
		if err != nil || r.ExitCode != 0 {
			return fmt.Errorf("exec: %w (%v)", err, r)
		}
		took = append(took, time.Since(begin))
	}
	note("exec of true, ms", spread(took))
	return d.remove(ctx, p.sandbox)
}

// stops: kill the container, take the network away, remove everything.
func stops(ctx context.Context, o options, d *driver, note func(what, figure string)) error {
	var took []time.Duration
	for range o.runs {
		p, err := d.run(ctx)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := d.remove(ctx, p.sandbox); err != nil {
			return err
		}
		took = append(took, time.Since(begin))
	}
	note("stop and remove of a running pod, ms", spread(took))
	return nil
}

// pulls: fetch and unpack, three times each from nothing.
func pulls(ctx context.Context, _ options, d *driver, note func(what, figure string)) error {
	for _, img := range []struct{ name, what string }{
		{"big:1", "pull of 200 MB in 4 layers, s, middle of 3"}, {"layers:1", "pull of 20 layers, 40 MB in 4,000 files, s"},
	} {
		var took []time.Duration
		for range 3 {
			begin := time.Now()
			ref, err := d.pull(ctx, img.name)
			if err != nil {
				return err
			}
			took = append(took, time.Since(begin))
			if _, err := d.client.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				return fmt.Errorf("removing %s: %w", img.name, err)
			}
		}
		slices.Sort(took)
		note(img.what, fmt.Sprintf("%.2f", took[1].Seconds()))
	}
	return nil
}
