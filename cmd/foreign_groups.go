package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cgroup"
)

// podGroups keeps the control groups of pods whose containers another runtime runs:
// such a runtime makes those of its containers below them and leaves the pods' own,
// with their limits, to the agent. It implements agent.Groups.
type podGroups struct{ layout cgroup.Layout }

func newPodGroups() (*podGroups, error) {
	l, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("control groups: %w", err)
	}
	return &podGroups{l}, nil
}

// Apply makes a group and sets its limits.
func (g *podGroups) Apply(path string, r *runtimeapi.LinuxContainerResources) error {
	group := g.layout.Group(path)
	if err := group.Create(); err != nil {
		return fmt.Errorf("control group %s: %w", path, err)
	}
	l := cgroup.Limits{CPUShares: uint64(max(r.GetCpuShares(), 0)), CPUQuota: r.GetCpuQuota(), CPUPeriod: uint64(max(r.GetCpuPeriod(), 0)), Memory: r.GetMemoryLimitInBytes(), Unified: r.GetUnified()}
	if l.CPUQuota == 0 {
		l.CPUQuota = -1
	}
	if err := group.Apply(l); err != nil {
		return fmt.Errorf("control group %s: %w", path, err)
	}
	return nil
}

// groupPatience is how long the kernel may take to let go of a group whose last
// process has just ended.
const groupPatience = 5 * time.Second

// Remove removes a group with all below it from every hierarchy; runtimes make them
// in hierarchies that knarr does not use, too.
func (g *podGroups) Remove(ctx context.Context, path string) error {
	mounts, err := groupMounts()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, groupPatience)
	defer cancel()
	var errs []error
	for _, m := range mounts {
		errs = append(errs, removeTree(ctx, filepath.Join(m, path)))
	}
	return errors.Join(errs...)
}

// groupMounts are the mount points of all hierarchies of control groups.
func groupMounts() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range strings.Split(string(b), "\n") {
		left, right, ok := strings.Cut(l, " - ")
		f := strings.Fields(left)
		if ok && len(f) > 4 && (strings.HasPrefix(right, "cgroup ") || strings.HasPrefix(right, "cgroup2 ")) {
			out = append(out, f[4])
		}
	}
	return out, nil
}

// removeTree removes folders from the deepest up.
func removeTree(ctx context.Context, root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // what is gone is gone
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		for {
			err := unix.Rmdir(d)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
				return fmt.Errorf("remove control group %s: %w", d, err)
			}
			// v1 has no event for a process that is on its way out.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
	return nil
}
