package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// idle measures a fresh cluster without load.
func idle(ctx context.Context, c *cluster) ([]row, error) {
	if err := c.down(); err != nil {
		return nil, err
	}
	if _, err := c.up(ctx); err != nil {
		return nil, err
	}
	return c.rest(ctx, "idle, fresh cluster", "<= 0.5 %", "<= 100 MiB")
}

// after measures what the groups before have left behind.
func after(ctx context.Context, c *cluster) ([]row, error) {
	// The past that watches may resume from is kept for up to two and a half minutes.
	if err := sleep(ctx, 150*time.Second); err != nil {
		return nil, err
	}
	return c.rest(ctx, "idle, after all that", "<= 0.5 %", "<= 150 MiB")
}

// crowd measures a cluster with 50 pods that do nothing.
func crowd(ctx context.Context, c *cluster) ([]row, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.followPods(ctx)
	if err != nil {
		return nil, err
	}
	api := c.client.CoreV1().Pods("default")
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprintf("crowd-%d", i))
		if _, err := api.Create(ctx, c.pod(names[i]), metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	if err := t.await(ctx, t.running, names...); err != nil {
		return nil, err
	}
	rows, err := c.rest(ctx, "50 idle pods", "<= 0.8 %", "<= 130 MiB")
	if err != nil {
		return nil, err
	}
	if err := api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "bench=1"}); err != nil {
		return nil, err
	}
	return rows, t.await(ctx, t.gone, names...)
}

// rest lets the cluster come to rest, then measures its CPU for a minute and its
// memory.
func (c *cluster) rest(ctx context.Context, what, cpu, mem string) ([]row, error) {
	pid := c.proc.Process.Pid
	settle, window := 20*time.Second, 60*time.Second
	if err := sleep(ctx, settle); err != nil {
		return nil, err
	}
	before, err := cpuTime(pid)
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, window); err != nil {
		return nil, err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return nil, err
	}
	pss, anon, err := memory(pid)
	if err != nil {
		return nil, err
	}
	c.profile(ctx, strings.ReplaceAll(what, " ", "-"))() // after the figures, which it would spoil
	return []row{
		{what + ": CPU, share of a core", fmt.Sprintf("%.2f %%", float64(after-before)/float64(window)*100), cpu},
		{what + ": memory, PSS, anonymous", fmt.Sprintf("%d MiB, %d MiB", pss, anon), mem},
	}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cpuTime is a process's user and system time.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+2:])
	user, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, err
}

// memory is a process's proportional and anonymous memory in MiB.
func memory(pid int) (pss, anon int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, l := range strings.Split(string(b), "\n") {
		var kb int
		if n, _ := fmt.Sscanf(l, "Pss: %d kB", &kb); n == 1 {
			pss = kb >> 10
		}
		if n, _ := fmt.Sscanf(l, "Anonymous: %d kB", &kb); n == 1 {
			anon = kb >> 10
		}
	}
	return pss, anon, nil
}
