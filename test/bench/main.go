// Command bench measures a real cluster on this machine and prints a table:
// boot, idle cost, pods, exec and the API. `make bench` runs it; it is no test.
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
}

func measures() []measure {
	return []measure{
		{"boot", boot},
		{"api", api},
		{"pods", pods},
		{"idle", idle},
	}
}

func main() {
	only := flag.String("only", "", "names of groups to run, separated by commas: boot, api, pods, idle")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string) error {
	c, err := newCluster()
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
		rows, err := m.run(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		for _, r := range rows {
			fmt.Printf("| %-62s | %-28s | %-18s |\n", r.what, r.figure, r.target)
		}
	}
	return nil
}
