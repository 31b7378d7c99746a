// Command conformance runs upstream's end-to-end suite against knarr: it builds
// the suite and the images that the specs start, serves the images from a
// registry of its own, boots a cluster with two nodes, runs the chosen specs and
// notes their outcome in docs/conformance.md.
//
//	go run . -sig api-machinery
//	go run . -focus 'ResourceQuota'
//	go run . -quick
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	focus, skip, sig string
	quick            bool
	procs, nodes     int
	knarr            string
	table            string
	cache            string
	keep, events     bool
	kubelet          bool
}

func main() {
	var o options
	flag.StringVar(&o.focus, "focus", "", "run the conformance specs whose name matches this regular expression")
	flag.StringVar(&o.skip, "skip", "", "leave out the specs whose name matches this regular expression")
	flag.StringVar(&o.sig, "sig", "", "run the specs of these groups: api-machinery, or several separated by |")
	flag.BoolVar(&o.quick, "quick", false, "run the fixed subset of continuous integration")
	flag.IntVar(&o.procs, "procs", 6, "specs that run at a time")
	flag.IntVar(&o.nodes, "nodes", 2, "nodes of the cluster; one spec demands two")
	flag.StringVar(&o.knarr, "knarr", "../../bin/knarr", "the binary to test")
	flag.StringVar(&o.table, "table", "", "file to note the outcomes in, such as ../../docs/conformance.md; empty: none")
	flag.StringVar(&o.cache, "cache", "../../.cache/conformance", "folder of built programs and of the run's output")
	flag.BoolVar(&o.keep, "keep", false, "leave the cluster running until interrupted, to look at it")
	flag.BoolVar(&o.kubelet, "kubelet", false, "have upstream's kubelet run the pods, on \"knarr runtime\"")
	flag.BoolVar(&o.events, "json", false, "print the outcomes as go test -json does")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, o)
	if o.events {
		printEvent("", err == nil, fmt.Sprint(err))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// step prints what begins.
func step(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func run(ctx context.Context, o options) error {
	for _, p := range []*string{&o.knarr, &o.cache} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	version, err := exec.CommandContext(ctx, o.knarr, "version").Output()
	if err != nil {
		return fmt.Errorf("%s version: %w", o.knarr, err)
	}
	if o.kubelet {
		o.nodes = 1
	}
	tools, err := buildTools(ctx, filepath.Join(o.cache, "bin"), o.kubelet)
	if err != nil {
		return err
	}
	all, err := tools.list(ctx)
	if err != nil {
		return err
	}
	chosen, err := choose(all, o)
	if err != nil {
		return err
	}
	step("%d of %d specs chosen", len(chosen), len(all))
	if len(chosen) == 0 {
		return fmt.Errorf("no spec is called so: -focus %q, -sig %q", o.focus, o.sig)
	}
	reg, err := serveImages(ctx, tools, o.cache)
	if err != nil {
		return err
	}
	defer reg.close()
	c, err := startCluster(ctx, o, reg.address)
	if err != nil {
		return err
	}
	defer c.stop()
	if o.kubelet {
		k, err := startKubelet(ctx, o, tools, c, reg.address)
		if err != nil {
			return err
		}
		defer k.stop()
	}
	results, err := runSpecs(ctx, tools, c, chosen, o)
	if err != nil {
		return err
	}
	if o.keep {
		step("the cluster stays: KUBECONFIG=%s; interrupt to end", c.kubeconfig)
		<-ctx.Done()
	}
	if o.table != "" {
		first, _, _ := strings.Cut(string(version), "\n")
		if err := writeTable(o.table, first, all, results, time.Now()); err != nil {
			return err
		}
	}
	if o.events {
		for _, r := range results {
			printEvent(r.short(), r.passed, r.why)
		}
	}
	return summary(results)
}

// choose picks the specs that the options name, keeping the suite's order.
func choose(all []spec, o options) ([]spec, error) {
	focus, err := regexp.Compile(o.focus)
	if err != nil {
		return nil, fmt.Errorf("-focus: %w", err)
	}
	skip, err := regexp.Compile(o.skip)
	if err != nil {
		return nil, fmt.Errorf("-skip: %w", err)
	}
	sig, err := regexp.Compile(`^(` + o.sig + `)$`)
	if err != nil {
		return nil, fmt.Errorf("-sig: %w", err)
	}
	var out []spec
	for _, s := range all {
		switch {
		case o.sig != "" && !sig.MatchString(s.sig()),
			o.skip != "" && skip.MatchString(s.name),
			o.quick && !quick[s.short()],
			!focus.MatchString(s.name):
			continue
		}
		out = append(out, s)
	}
	return out, nil
}
