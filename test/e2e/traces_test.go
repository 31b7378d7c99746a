package e2e

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

func nopLogger() *log.Logger { return log.New(io.Discard, "", 0) }

// traces lists what a cluster makes on a machine: mounts, control groups, links,
// routes, nftables rules, eBPF programs attached to control groups, and processes
// of ours.
func traces(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(l); len(f) > 2 {
			out["mount "+f[1]+" "+f[2]] = true
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "e2e") {
			out["cgroup "+path] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	commands := [][]string{{"ip", "-o", "link"}, {"ip", "route", "show", "table", "all"}, {"ip", "-o", "addr"}}
	if _, err := exec.LookPath("nft"); err == nil {
		commands = append(commands, []string{"nft", "list", "tables"})
	}
	for _, c := range commands {
		b, err := exec.CommandContext(t.Context(), c[0], c[1:]...).Output()
		if err != nil && t.Context().Err() == nil {
			t.Fatalf("%v: %v", c, err)
		}
		if t.Context().Err() != nil { // in a cleanup the test's context has ended
			b, err = exec.Command(c[0], c[1:]...).Output()
			if err != nil {
				t.Errorf("%v: %v", c, err)
			}
		}
		for _, l := range strings.Split(string(b), "\n") {
			if l = normal(l); l != "" {
				out[c[0]+" "+c[1]+": "+l] = true
			}
		}
	}
	for _, p := range processes() {
		out[p] = true
	}
	return out
}

// normal drops what changes by itself.
func normal(line string) string {
	f := strings.Fields(line)
	if len(f) > 1 && strings.HasSuffix(f[0], ":") {
		f = f[1:2] // a link or address: its name
	}
	return strings.Join(f, " ")
}

// processes lists those of test clusters, containers included.
func processes() []string {
	var out []string
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue
		}
		if stat, err := os.ReadFile(d + "/stat"); err != nil || bytes.Contains(stat, []byte(") Z ")) {
			continue // ended, and only waits for init to notice
		}
		cg, _ := os.ReadFile(d + "/cgroup")
		line := strings.TrimSpace(string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
		if strings.Contains(string(cg), "e2e") || strings.Contains(line, "--name e2e") || strings.Contains(line, "knarr-holder") {
			out = append(out, fmt.Sprintf("process %s %s", filepath.Base(d), line))
		}
	}
	return out
}

func difference(before, after map[string]bool) []string {
	var out []string
	for k := range after {
		if !before[k] {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out
}
