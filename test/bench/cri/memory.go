package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// counts are what a runtime holds of the machine.
type counts struct {
	processes, pss, anon   int // its own, those beside the containers included; KB
	files, mounts, groups  int
	namespaces, interfaces int
}

func (c counts) String() string {
	return fmt.Sprintf("%d processes, %d descriptors, %d mounts, %d groups, %d network namespaces, %d links, %.1f MiB",
		c.processes, c.files, c.mounts, c.groups, c.namespaces, c.interfaces, float64(c.pss)/1024)
}

// look counts now.
func (d *driver) look() (counts, error) {
	var c counts
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return c, err
	}
	for _, p := range dirs {
		if !d.owns(p) {
			continue
		}
		c.processes++
		c.pss += rollup(p, "Pss:")
		c.anon += rollup(p, "Pss_Anon:")
		if p == fmt.Sprintf("/proc/%d", d.proc.Process.Pid) {
			files, err := os.ReadDir(p + "/fd")
			if err != nil {
				return c, err
			}
			c.files = len(files)
		}
	}
	for _, f := range mounts() {
		switch netns := strings.HasPrefix(f[1], "/run/netns/cni-"); {
		case f[2] == "nsfs" && (netns || strings.HasPrefix(f[1], d.dir) && strings.HasSuffix(f[1], "/net")):
			c.namespaces++
		case strings.HasPrefix(f[1], d.dir):
			c.mounts++
		}
	}
	// A kubelet makes and removes the pods' own groups: here they are nobody's business.
	for _, g := range groupDirs() {
		for _, pod := range folders(filepath.Join(g, "pods")) {
			_ = syscall.Rmdir(pod) // one that is in use stays
		}
	}
	for _, g := range groupDirs() {
		c.groups += len(folders(g))
	}
	links, err := os.ReadDir("/sys/class/net")
	for _, l := range links {
		if strings.HasPrefix(l.Name(), group) || strings.HasPrefix(l.Name(), "veth") {
			c.interfaces++
		}
	}
	return c, err
}

// owns tells whether the process is the runtime or stays beside containers for it:
// the runtime itself, shims, holders and pause processes, but no container's own.
func (d *driver) owns(proc string) bool {
	if proc == fmt.Sprintf("/proc/%d", d.proc.Process.Pid) {
		return true
	}
	cmd, err := os.ReadFile(proc + "/cmdline")
	if err != nil || len(cmd) == 0 {
		return false
	}
	if bytes.Contains(cmd, []byte(workload[1])) {
		return false
	}
	if bytes.Contains(cmd, []byte(d.dir)) { // shims name their socket
		return true
	}
	cg, err := os.ReadFile(proc + "/cgroup") // holders and pauses
	return err == nil && (bytes.Contains(cg, []byte("/"+group+"/")) || bytes.Contains(cg, []byte("/"+group+"\n")))
}

// rollup is one of the sums over the process' memory, in KB.
func rollup(proc, what string) int {
	b, err := os.ReadFile(proc + "/smaps_rollup")
	if err != nil {
		return 0 // it has ended
	}
	_, rest, _ := strings.Cut(string(b), "\n"+what)
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(f[0])
	return n
}

// restTime is how long a runtime is left alone before its idle memory is looked at.
const restTime = time.Minute

// rested counts after a time of rest, and notes the memory.
func (d *driver) rested(ctx context.Context, note func(what, figure string), what string) (counts, error) {
	select {
	case <-ctx.Done():
		return counts{}, ctx.Err()
	case <-time.After(restTime):
	}
	c, err := d.look()
	if err == nil {
		note("memory of the runtime without pods, a minute after "+what+", MiB (PSS; less the pages of its file, which the kernel can drop)", fmt.Sprintf("%.1f (%.1f)", float64(c.pss)/1024, float64(c.anon)/1024))
	}
	return c, err
}

// idle: what a runtime takes that has done nothing since its start but fetch an image.
func idle(ctx context.Context, _ options, d *driver, note func(what, figure string)) error {
	_, err := d.rested(ctx, note, "its start")
	return err
}

// memory: what the runtime takes for each pod, its containers' own memory aside.
func memory(ctx context.Context, o options, d *driver, note func(what, figure string)) error {
	var pods []pod
	base, err := d.rested(ctx, note, "the figures above")
	if err != nil {
		return err
	}
	for _, n := range o.pods {
		for len(pods) < n {
			p, err := d.run(ctx)
			if err != nil {
				return errors.Join(err, d.removeAll(ctx, pods))
			}
			pods = append(pods, p)
		}
		c, err := d.look()
		if err != nil {
			return err
		}
		note(fmt.Sprintf("memory of runtime, shims, holders and pauses per pod at %d pods, MiB", n), fmt.Sprintf("%.2f", float64(c.pss-base.pss)/1024/float64(n)))
		note(fmt.Sprintf("the same in all at %d pods, MiB, and processes", n), fmt.Sprintf("%.0f (%.0f), %d", float64(c.pss)/1024, float64(c.anon)/1024, c.processes))
	}
	return d.removeAll(ctx, pods)
}

func (d *driver) removeAll(ctx context.Context, pods []pod) error {
	var errs []error
	for _, p := range pods {
		errs = append(errs, d.remove(ctx, p.sandbox))
	}
	return errors.Join(errs...)
}

// workers is how many pods are made at a time by churn.
const workers = 4

// churn makes and removes many pods and tells what is left.
func churn(ctx context.Context, o options, d *driver, note func(what, figure string)) error {
	// The first pods make what stays for all.
	for range workers {
		p, err := d.run(ctx)
		if err != nil {
			return err
		}
		if err := d.remove(ctx, p.sandbox); err != nil {
			return err
		}
	}
	before, err := d.look()
	if err != nil {
		return err
	}
	begin := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for range o.churn {
		g.Go(func() error {
			p, err := d.run(gctx)
			if err != nil {
				return err
			}
			return d.remove(gctx, p.sandbox)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	took := time.Since(begin)
	// Links and namespaces go some time after their last process.
	var after counts
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-look.C {
		if after, err = d.look(); err != nil {
			return err
		}
		if after.interfaces <= before.interfaces && after.namespaces <= before.namespaces {
			break
		}
	}
	note(fmt.Sprintf("%d pods made and removed, %d at a time, pods/s", o.churn, workers), fmt.Sprintf("%.1f", float64(o.churn)/took.Seconds()))
	note("before them", before.String())
	note("after them", after.String())
	return nil
}
