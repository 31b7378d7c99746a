// Command bench measures a real cluster on this machine and prints a table:
// boot, idle cost, pods, exec and the API. `make bench` runs it; it is no test.
// With -profiles it also writes the cluster's profiles, and its log at debug level
// (which times the phases of each pod's start), to a folder.
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

// row is one figure.
type row struct {
	what, figure, target string
}

// measure is one group of figures.
type measure struct {
	name string
	run  func(context.Context, *cluster) ([]row, error)
	busy bool // profiled while it runs
}

func measures() []measure {
	return []measure{
		{"boot", boot, false},
		{"idle", idle, false}, // of a fresh cluster: nothing but boots before
		{"pods", pods, true},
		{"crowd", crowd, false},
		{"api", api, true}, // just before after, for the memory that it leaves
		{"after", after, false},
		{"fleet", fleet, false},
	}
}

func main() {
	only := flag.String("only", "", "names of groups to run, separated by commas: boot, idle, pods, crowd, api, after, fleet")
	profiles := flag.String("profiles", "", "folder for CPU and heap profiles of each group, and the cluster's log")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, *profiles); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only, profiles string) error {
	c, err := newCluster(profiles)
	if err != nil {
		return err
	}
	defer c.remove()
	if _, err := c.up(ctx); err != nil {
		return err
	}
	fmt.Printf("| %-62s | %-28s | %-18s |\n|%s|%s|%s|\n", "figure, "+time.Now().Format(time.DateOnly), "here", "target",
		strings.Repeat("-", 64), strings.Repeat("-", 30), strings.Repeat("-", 20))
	for _, m := range measures() {
		if only != "" && !strings.Contains(","+only+",", ","+m.name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring: %s\n", m.name)
		stop := func() {}
		if m.busy {
			stop = c.profile(ctx, m.name)
		}
		rows, err := m.run(ctx, c)
		stop()
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		for _, r := range rows {
			fmt.Printf("| %-62s | %-28s | %-18s |\n", r.what, r.figure, r.target)
		}
	}
	return nil
}
