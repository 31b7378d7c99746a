package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

func nopLogger() *log.Logger { return log.New(io.Discard, "", 0) }

// The kernel takes a while to let go of what nobody uses any more: a closed
// connection whose peer is gone tries to say so for about 100 s (8 times, each
// after twice the time) and holds its namespace and the programs of its control
// group as long.
const kernelGrace = 150 * time.Second

// noTraces fails the test if anything of the cluster is left on the machine:
// mounts, control groups, links, addresses, routes, nftables tables, processes,
// eBPF programs.
func (c *cluster) noTraces(programs map[ebpf.ProgramID]bool) {
	c.t.Helper()
	var left []string
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(kernelGrace); time.Now().Before(end); <-look.C {
		if left = c.traces(programs); len(left) == 0 {
			return
		}
	}
	c.t.Errorf("left behind on this machine:\n%s", strings.Join(left, "\n"))
}

func (c *cluster) traces(programs map[ebpf.ProgramID]bool) []string {
	var out []string
	marks := []string{c.name, c.data, filepath.Join(c.dir, "run"), fmt.Sprintf("10.%d.", c.octet()), fmt.Sprintf("10.%d.", c.octet()+50)}
	add := func(what, text string) {
		for _, line := range strings.Split(text, "\n") {
			if slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(line, m) }) {
				out = append(out, what+": "+line)
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		c.t.Fatal(err)
	}
	add("mount", string(mounts))
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			add("cgroup", path)
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	commands := [][]string{{"ip", "-o", "link"}, {"ip", "route", "show", "table", "all"}, {"ip", "-o", "addr"}}
	if _, err := exec.LookPath("nft"); err == nil {
		commands = append(commands, []string{"nft", "list", "ruleset"})
	}
	for _, cmd := range commands {
		b, err := exec.Command(cmd[0], cmd[1:]...).Output()
		if err != nil {
			c.t.Fatalf("%v: %v", cmd, err)
		}
		add(cmd[0]+" "+cmd[1], string(b))
	}
	procs, others := c.running()
	out = append(out, procs...)
	if others == 0 { // else the programs may be another instance's
		for id, name := range allPrograms(c.t) {
			if !programs[id] {
				out = append(out, fmt.Sprintf("eBPF program %d %s", id, name))
			}
		}
	}
	return out
}

// running lists the cluster's processes, containers included, and counts other
// instances of knarr.
func (c *cluster) running() (mine []string, others int) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			continue // ended, and only waits for init to notice
		}
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue
		}
		line := strings.TrimSpace(string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
		cg, _ := os.ReadFile(d + "/cgroup")
		switch {
		case strings.Contains(string(cg), "/"+c.name+"/"), strings.Contains(line, "--name "+c.name+" "):
			mine = append(mine, fmt.Sprintf("process %s %s", filepath.Base(d), line))
		case strings.Contains(line, "knarr up "), strings.Contains(line, ".test ") && filepath.Base(d) != strconv.Itoa(os.Getpid()):
			others++ // another instance, or another package's tests
		}
	}
	return mine, others
}

// allPrograms lists the kernel's eBPF programs.
func allPrograms(t *testing.T) map[ebpf.ProgramID]string {
	t.Helper()
	out := map[ebpf.ProgramID]string{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it has just gone
		}
		if info, err := p.Info(); err == nil {
			out[id] = info.Name
		}
		p.Close()
	}
}

func bpfPrograms(t *testing.T) map[ebpf.ProgramID]bool {
	t.Helper()
	out := map[ebpf.ProgramID]bool{}
	for id := range allPrograms(t) {
		out[id] = true
	}
	return out
}
