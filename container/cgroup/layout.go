// Package cgroup places processes in control groups and limits and measures
// them, on hosts with cgroup v2, with v1, and with both (hybrid): there the
// limits are v1's and v2 serves for killing, for CPU time and for BPF.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Layout says where the hierarchies are mounted.
type Layout struct {
	// V1 maps a controller (memory, cpu, pids, ...) to its mount point.
	V1 map[string]string
	// V2 is the mount point of the unified hierarchy, empty if there is none.
	V2 string
	// points are all mount points: other programs make groups of the same path in
	// hierarchies that are not used here.
	points []string
	// parents is locked while parents are removed, which another group may be about
	// to be made in.
	parents *sync.RWMutex
	// threads is read-locked while a thread of this process is in a group, see JoinThread.
	threads *sync.RWMutex
}

// used are the v1 controllers that every container joins; each costs a
// migration at start, so what is only needed on request is joined then.
var used = [...]string{"cpu", "memory", "pids"}

// Detect reads the layout from /proc/self/mountinfo.
func Detect() (Layout, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Layout{}, fmt.Errorf("looking for control groups: %w", err)
	}
	l := parseMounts(string(data))
	if l.V2 == "" && len(l.V1) == 0 {
		return l, errors.New("no control groups are mounted: mount cgroup2 on /sys/fs/cgroup")
	}
	return l, nil
}

// parseMounts understands lines of the form
// "ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS] - TYPE SOURCE SUPEROPTIONS".
func parseMounts(text string) Layout {
	l := Layout{V1: map[string]string{}, parents: new(sync.RWMutex), threads: new(sync.RWMutex)}
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 6 || len(g) < 3 || f[3] != "/" {
			continue
		}
		switch g[0] {
		case "cgroup2":
			l.points = append(l.points, f[4])
			if l.V2 == "" {
				l.V2 = f[4]
			}
		case "cgroup":
			l.points = append(l.points, f[4])
			for _, o := range strings.Split(g[2], ",") {
				if _, dup := l.V1[o]; !dup && o != "rw" && o != "ro" && !strings.Contains(o, "=") {
					l.V1[o] = f[4]
				}
			}
		}
	}
	return l
}

// controllers returns the v1 mount points of names, each once.
func (l Layout) controllers(names ...string) []string {
	var dirs []string
	seen := map[string]bool{}
	for _, n := range names {
		if d := l.V1[n]; d != "" && !seen[d] {
			seen[d] = true
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// clean keeps a path below the hierarchy's root.
func clean(p string) string { return filepath.Clean("/" + p) }
