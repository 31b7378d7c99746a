// Command tally reads the output of go test -json, shows progress, failures and
// the reasons of skipped tests, and closes with a line that counts the tests:
// "N passed, N failed, N skipped". It exits with 1 if a test or package failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

type key struct{ pkg, test string }

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 0, 1<<20), 16<<20)
	output := map[key][]string{}
	passed, failed, skipped := 0, 0, 0
	broken := false
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text())
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "output":
			output[k] = append(output[k], e.Output)
		case "build-output":
			fmt.Print(e.Output)
		case "build-fail":
			broken = true
		case "pass", "fail", "skip":
			if e.Test == "" {
				report(&e, output[k])
				broken = broken || e.Action == "fail"
				delete(output, k)
				continue
			}
			switch e.Action {
			case "pass":
				passed++
			case "fail":
				failed++
				fmt.Printf("--- FAIL: %s %s\n%s", e.Package, e.Test, strings.Join(output[k], ""))
			case "skip":
				skipped++
				fmt.Printf("--- SKIP: %s %s\n%s", e.Package, e.Test, strings.Join(output[k], ""))
			}
			delete(output, k)
		}
	}
	if err := in.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		broken = true
	}
	if broken && failed == 0 {
		failed = 1 // a package that did not build or that died outside of a test
	}
	if passed == 0 && failed == 0 {
		fmt.Println("no test ran")
		failed = 1
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 {
		os.Exit(1)
	}
}

// report prints a package's line, and its output if it failed.
func report(e *event, out []string) {
	if e.Action == "skip" { // no test files
		return
	}
	fmt.Printf("%-4s %-60s %6.1f s\n", map[string]string{"pass": "ok", "fail": "FAIL"}[e.Action], e.Package, e.Elapsed)
	if e.Action == "fail" {
		fmt.Print(strings.Join(out, ""))
	}
}
