package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// summary prints the failures and the closing line.
func summary(results []outcome) error {
	passed, failed := 0, 0
	for _, r := range results {
		if r.passed {
			passed++
			continue
		}
		failed++
		why, _, _ := strings.Cut(r.why, "\n")
		fmt.Printf("FAILED %s\n       %s\n", r.name, why)
	}
	fmt.Printf("conformance: %d specs passed, %d failed\n", passed, failed)
	if failed > 0 {
		return fmt.Errorf("%d specs failed", failed)
	}
	return nil
}

// printEvent prints a spec's outcome, or with an empty name that of the whole run,
// as an event of go test -json.
func printEvent(name string, passed bool, why string) {
	type event struct{ Action, Package, Test, Output string }
	e := event{Package: "conformance", Test: name, Action: "pass"}
	if !passed {
		e.Action = "fail"
		printJSON(event{"output", e.Package, name, why + "\n"})
	}
	printJSON(e)
}

func printJSON(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain strings always encode
	}
	fmt.Println(string(b))
}

// The table's part of the page lies between these lines.
const (
	tableBegin = "<!-- table: written by make conformance -->"
	tableEnd   = "<!-- end of table -->"
)

// row is what the page says about a spec.
type row struct{ result, date string }

// writeTable notes the outcomes in the page, keeping what it says of specs that
// did not run.
func writeTable(file, knarr string, all []spec, results []outcome, now time.Time) error {
	page, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	before, after := page, []byte(nil)
	if i := bytes.Index(page, []byte(tableBegin)); i >= 0 {
		before = page[:i]
		if j := bytes.Index(page, []byte(tableEnd)); j >= 0 {
			after = page[j+len(tableEnd):]
		}
	}
	rows := readRows(page)
	for _, r := range results {
		result := "failed"
		if r.passed {
			result = "passed"
		}
		rows[r.name] = row{result, now.Format(time.DateOnly)}
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(tableBegin + "\n\n")
	fmt.Fprintf(&b, "Last run: %s, %s, suite %s, %d specs.\n\n", now.Format(time.DateOnly), knarr, release, len(results))
	writeRows(&b, all, rows)
	b.WriteString(tableEnd)
	if after == nil {
		after = []byte("\n")
	}
	b.Write(after)
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// readRows reads the rows "| result | date | name |" of an earlier run.
func readRows(page []byte) map[string]row {
	rows := map[string]row{}
	for s := bufio.NewScanner(bytes.NewReader(page)); s.Scan(); {
		cells := strings.Split(strings.Trim(s.Text(), "| "), " | ")
		if len(cells) == 3 && (cells[0] == "passed" || cells[0] == "failed") {
			rows[unescape(cells[2])] = row{cells[0], cells[1]}
		}
	}
	return rows
}

// Names hold no bar; brackets must not look like links.
func escape(name string) string   { return strings.ReplaceAll(name, "[", `\[`) }
func unescape(name string) string { return strings.ReplaceAll(name, `\[`, "[") }

func writeRows(b *bytes.Buffer, all []spec, rows map[string]row) {
	bySIG := map[string][]spec{}
	var sigs []string
	for _, s := range all {
		if bySIG[s.sig()] == nil {
			sigs = append(sigs, s.sig())
		}
		bySIG[s.sig()] = append(bySIG[s.sig()], s)
	}
	slices.Sort(sigs)
	count := func(specs []spec, result string) (n int) {
		for _, s := range specs {
			if rows[s.name].result == result {
				n++
			}
		}
		return n
	}
	fmt.Fprintf(b, "| Group | Specs | Passed | Failed | Not run |\n|---|---|---|---|---|\n")
	line := func(name string, specs []spec) {
		p, f := count(specs, "passed"), count(specs, "failed")
		fmt.Fprintf(b, "| %s | %d | %d | %d | %d |\n", name, len(specs), p, f, len(specs)-p-f)
	}
	for _, sig := range sigs {
		line(sig, bySIG[sig])
	}
	line("all", all)
	for _, sig := range sigs {
		specs := bySIG[sig]
		slices.SortFunc(specs, func(x, y spec) int { return strings.Compare(x.name, y.name) })
		fmt.Fprintf(b, "\n## %s\n\n| Result | Date | Spec |\n|---|---|---|\n", sig)
		for _, s := range specs {
			r, ok := rows[s.name]
			if !ok {
				r = row{"not run", ""}
			}
			fmt.Fprintf(b, "| %s | %s | %s |\n", r.result, r.date, escape(s.name))
		}
	}
	b.WriteString("\n")
}
