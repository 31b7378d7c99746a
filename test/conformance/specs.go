package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// spec is one conformance spec.
type spec struct{ name string }

// sig is the group that owns the spec: api-machinery, node.
func (s spec) sig() string {
	_, rest, _ := strings.Cut(s.name, "[sig-")
	sig, _, _ := strings.Cut(rest, "]")
	return sig
}

var tags = regexp.MustCompile(`\s*\[[^\]]*\]`)

// short is the name without its tags.
func (s spec) short() string { return strings.TrimSpace(tags.ReplaceAllString(s.name, "")) }

func (s spec) serial() bool { return strings.Contains(s.name, "[Serial]") }

const conformance = `\[Conformance\]`

// list asks the suite for its conformance specs.
func (t tools) list(ctx context.Context) ([]spec, error) {
	report := filepath.Join(string(t), "list.json")
	c := exec.CommandContext(ctx, t.path("e2e.test"), "--ginkgo.dry-run", "--ginkgo.focus="+conformance, "--ginkgo.json-report="+report)
	if out, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("list the specs: %w\n%s", err, tail(out))
	}
	runs, err := readReport(report)
	if err != nil {
		return nil, err
	}
	var specs []spec
	for _, r := range runs {
		if r.State != types.SpecStateSkipped {
			specs = append(specs, spec{r.FullText()})
		}
	}
	return specs, nil
}

func readReport(file string) ([]types.SpecReport, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var reports []types.Report
	if err := json.Unmarshal(b, &reports); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var out []types.SpecReport
	for _, r := range reports {
		for _, s := range r.SpecReports {
			if s.LeafNodeType == types.NodeTypeIt {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// outcome is how a spec ended.
type outcome struct {
	spec
	passed bool
	took   time.Duration
	why    string
}

// runSpecs runs the parallel specs at once and then the serial ones alone.
func runSpecs(ctx context.Context, t tools, c *cluster, chosen []spec, o options) ([]outcome, error) {
	var parallel, serial []spec
	for _, s := range chosen {
		if s.serial() {
			serial = append(serial, s)
		} else {
			parallel = append(parallel, s)
		}
	}
	var out []outcome
	for _, part := range []struct {
		name  string
		specs []spec
		procs int
	}{{"parallel", parallel, o.procs}, {"serial", serial, 1}} {
		if len(part.specs) == 0 {
			continue
		}
		r, err := runPart(ctx, t, c, part.name, part.specs, part.procs, o.cache)
		if err != nil {
			return nil, err
		}
		out = append(out, r...)
	}
	return out, nil
}

func runPart(ctx context.Context, t tools, c *cluster, part string, specs []spec, procs int, cache string) ([]outcome, error) {
	dir := filepath.Join(cache, "results")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, part+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var names []string
	for _, s := range specs {
		names = append(names, regexp.QuoteMeta(s.name))
	}
	report := part + ".json"
	args := []string{
		"--procs=" + strconv.Itoa(min(procs, len(specs))), "--no-color", "--timeout=3h", "--silence-skips", "--output-dir=" + dir, "--json-report=" + report,
		"--focus= (" + strings.Join(names, "|") + ")$", t.path("e2e.test"), "--",
		"--provider=skeleton", "--kubeconfig=" + c.kubeconfig, "--kubectl-path=" + t.path("kubectl"), fmt.Sprintf("--num-nodes=%d", c.nodes),
		"--allowed-not-ready-nodes=-1", "--disable-log-dump", "--delete-namespace-on-failure=true",
	}
	step("running %d %s specs, output in %s", len(specs), part, log.Name())
	cmd := exec.CommandContext(ctx, t.path("ginkgo"), args...)
	w := &progress{to: log, total: len(specs)}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err = cmd.Run()
	w.end()
	runs, e := readReport(filepath.Join(dir, report))
	if e != nil {
		return nil, fmt.Errorf("%w: %v: see %s", e, err, log.Name())
	}
	var out []outcome
	for _, r := range runs {
		if r.State == types.SpecStateSkipped && r.Failure.Message == "" {
			continue // not chosen
		}
		out = append(out, outcome{spec: spec{r.FullText()}, passed: r.State == types.SpecStatePassed, took: r.RunTime, why: strings.TrimSpace(r.State.String() + ": " + r.Failure.Message)})
	}
	return out, nil
}

// progress writes the suite's output to a file and says on the terminal how far
// it is: a dot stands for a spec that passed, a mark for one that failed.
type progress struct {
	to     io.Writer
	total  int
	mu     sync.Mutex
	done   int
	failed int
	last   time.Time
}

var passMark, failMark = []byte("•"), []byte("• [FAILED]")

func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := bytes.Count(b, passMark)
	p.done += n
	p.failed += bytes.Count(b, failMark)
	if n > 0 && time.Since(p.last) > 5*time.Second {
		p.last = time.Now()
		p.say()
	}
	return p.to.Write(b)
}

func (p *progress) say() { step("%d of %d specs done, %d failed", p.done, p.total, p.failed) }

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.say()
}

func tail(b []byte) []byte { return b[max(0, len(b)-4000):] }
