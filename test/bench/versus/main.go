// Command versus measures upstream's API server with its etcd, and knarr, one
// after the other with the same client-go program, and prints a table.
// `make bench-api` builds what it needs and runs it; it is no test.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.knarr, "knarr", "bin/knarr", "knarr's binary")
	flag.StringVar(&o.name, "name", "versus", "name of knarr's instance")
	flag.StringVar(&o.bin, "bin", ".cache/conformance/bin", "folder of kube-apiserver and etcd")
	flag.StringVar(&o.only, "only", "", "knarr or upstream: that one alone")
	flag.StringVar(&o.groups, "groups", "", "names of groups to run, separated by commas: builtin, custom, lists, watch, fanout, memory")
	flag.StringVar(&o.profiles, "profiles", "", "folder for a CPU profile of knarr in each figure of requests")
	flag.DurationVar(&o.window, "window", 3*time.Second, "how long each figure of requests is taken for")
	flag.IntVar(&o.objects, "objects", 50000, "objects that memory is measured with")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "versus:", err)
		os.Exit(1)
	}
}

// options is what the command line says.
type options struct {
	knarr, name, bin, only, groups, profiles string
	window                                   time.Duration
	objects                                  int
}

// figure is one measured value.
type figure struct{ what, value string }

// targets are what the figures of knarr are held against.
var targets = map[string]string{
	"create, 1 writer":                 ">= 1200/s, 0.7 ms",
	"create, 64 writers":               ">= 8000/s",
	"get, 1 reader":                    ">= 4000/s, 0.25 ms",
	"get, 64 readers":                  ">= 12000/s",
	"server-side apply, 64":            ">= 5000/s",
	"merge patch, 64":                  ">= 6000/s",
	"list 5,000, JSON":                 "<= 12 ms",
	"list 5,000, protobuf":             "<= 6 ms",
	"create to watch event":            "<= 0.8 / 3 ms",
	"1000 watchers, an event to all":   "<= 20 ms",
	"memory after the run, PSS (anon)": "<= 150 MiB",
}

func run(ctx context.Context, o *options) error {
	starters := []struct {
		name  string
		start func(context.Context, *options) (*server, error)
	}{{"upstream", startUpstream}, {"knarr", startKnarr}}
	columns := map[string]map[string]string{}
	var order, names []string
	for _, s := range starters {
		if o.only != "" && o.only != s.name {
			continue
		}
		names = append(names, s.name)
		figures, err := one(ctx, o, s.name, s.start)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		for _, f := range figures {
			if columns[f.what] == nil {
				columns[f.what] = map[string]string{}
				order = append(order, f.what)
			}
			columns[f.what][s.name] = f.value
		}
	}
	fmt.Printf("| Figure, %s | %s | Target |\n|%s\n", time.Now().Format(time.DateOnly), strings.Join(names, " | "), strings.Repeat("---|", len(names)+2))
	for _, what := range order {
		fmt.Printf("| %s |", what)
		for _, n := range names {
			fmt.Printf(" %s |", columns[what][n])
		}
		fmt.Printf(" %s |\n", targets[what])
	}
	return nil
}

// one measures one server from its start to its end.
func one(ctx context.Context, o *options, name string, start func(context.Context, *options) (*server, error)) ([]figure, error) {
	s, err := start(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	var out []figure
	for _, g := range []struct {
		name string
		run  func(context.Context, *server) ([]figure, error)
	}{{"builtin", builtin}, {"custom", custom}, {"lists", lists}, {"watch", watchDelay}, {"fanout", fanOut}, {"memory", memory}} {
		if o.groups != "" && !strings.Contains(","+o.groups+",", ","+g.name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, g.name)
		figures, err := g.run(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.name, err)
		}
		out = append(out, figures...)
	}
	return out, nil
}
