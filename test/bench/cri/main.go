// Command cri measures container runtimes against each other through the CRI, on the
// same machine in the same run: knarr's own, alone and with runc and crun as handlers, and Debian's containerd with runc. It
// prints a table; `make bench-cri` runs it, as root. What it runs has folders, sockets,
// networks and control groups of its own, which are removed at the end.
//
//	go run ./test/bench/cri
//	go run ./test/bench/cri -only start,exec -runtimes knarr,containerd+runc
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	only, runtimes, knarr string
	runs, churn           int
	pods                  []int
}

// row is one figure of every runtime; a missing one is a dash.
type row struct {
	what    string
	figures map[string]string
}

// table collects figures in the order in which they first come.
type table struct{ rows []*row }

func (t *table) add(runtime, what, figure string) {
	for _, r := range t.rows {
		if r.what == what {
			r.figures[runtime] = figure
			return
		}
	}
	t.rows = append(t.rows, &row{what, map[string]string{runtime: figure}})
}

func (t *table) print(runtimes []string) {
	fmt.Printf("| %s | %s |\n|%s\n", "figure, "+time.Now().Format(time.DateOnly), strings.Join(runtimes, " | "), strings.Repeat("---|", len(runtimes)+1))
	for _, r := range t.rows {
		fmt.Printf("| %s ", r.what)
		for _, name := range runtimes {
			f := r.figures[name]
			if f == "" {
				f = "-"
			}
			fmt.Printf("| %s ", f)
		}
		fmt.Println("|")
	}
}

func main() {
	var o options
	pods := flag.String("pods", "110,300", "numbers of pods at which memory is measured")
	flag.StringVar(&o.only, "only", "idle,start,exec,stop,pull,memory,churn", "what to measure")
	flag.StringVar(&o.runtimes, "runtimes", "knarr,knarr:runc,knarr:crun,containerd+runc", "whom to measure: knarr, knarr:HANDLER, containerd+PROGRAM")
	flag.StringVar(&o.knarr, "knarr", "bin/knarr", "the binary to measure")
	flag.IntVar(&o.runs, "runs", 100, "repetitions of short measurements")
	flag.IntVar(&o.churn, "churn", 1000, "pods that are made and removed for the count of leaks")
	flag.Parse()
	for _, p := range strings.Split(*pods, ",") {
		n, err := strconv.Atoi(p)
		if err != nil {
			fmt.Fprintln(os.Stderr, "-pods:", err)
			os.Exit(2)
		}
		o.pods = append(o.pods, n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-cri:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("running containers needs root")
	}
	knarr, err := filepath.Abs(o.knarr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bcri-") // short, for sockets
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	reg, err := serveImages(ctx, dir)
	if err != nil {
		return err
	}
	defer reg.close()
	var t table
	var errs []error
	names := strings.Split(o.runtimes, ",")
	for i, name := range names {
		c := &contender{name: name, dir: filepath.Join(dir, strconv.Itoa(i)), knarr: knarr, registry: reg.address}
		if err := measure(ctx, c, o, &t); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	t.print(names) // with dashes for what failed
	return errors.Join(errs...)
}

// measure starts one runtime, takes its figures and removes it.
func measure(ctx context.Context, c *contender, o options, t *table) (err error) {
	if err := c.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	d := &driver{contender: c}
	if _, err := d.pull(ctx, "box:1"); err != nil {
		return err
	}
	for _, m := range []struct {
		name string
		run  func(context.Context, options, *driver, func(what, figure string)) error
	}{{"idle", idle}, {"start", starts}, {"exec", execs}, {"stop", stops}, {"pull", pulls}, {"memory", memory}, {"churn", churn}} {
		if !strings.Contains(","+o.only+",", ","+m.name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s, load %s\n", c.name, m.name, load())
		if err := m.run(ctx, o, d, func(what, figure string) { t.add(c.name, what, figure) }); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// load is how many processes wanted to run in the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(b))[0]
}
