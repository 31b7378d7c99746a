package cmd

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/container/cgroup"
)

// classes are the control groups that all pods of a node share, by their quality of
// service: of CPUs that are short, best-effort pods have what is left by the others, and
// burstable ones together what they requested.
//
//	NAME/kubepods             the machine's CPUs, memory and tasks, less what is reserved;
//	│                         of tasks nine tenths at most
//	├── pod...                guaranteed
//	├── burstable             what its pods request
//	│   └── pod...
//	└── besteffort            the least
//	    └── pod...
type classes struct{ burstable cgroup.Group }

// podGroup is the parent of all pods' control groups.
func (c *Config) podGroup() string { return "/" + c.group() + "/kubepods" }

// newClasses makes the groups beneath root, for pods that have the machine less reserved.
func newClasses(root string, reserved corev1.ResourceList) (*classes, error) {
	l, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("control groups: %w", err)
	}
	most, err := maxTasks()
	if err != nil {
		return nil, err
	}
	kept := reserved[tasks]
	whole := cgroup.Limits{Memory: -1, PIDs: min(most/10*9, most-kept.Value())} // whatever pods do, some are left to the machine
	whole.CPUShares = uint64(podspec.Shares(max(int64(runtime.NumCPU())*1000-reserved.Cpu().MilliValue(), 0)))
	if q := reserved.Memory(); !q.IsZero() {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return nil, fmt.Errorf("the machine's memory: %w", err)
		}
		if whole.Memory = int64(info.Totalram)*int64(info.Unit) - q.Value(); whole.Memory <= 0 {
			return nil, errors.New("systemReserved and kubeReserved leave no memory to pods")
		}
	}
	if whole.PIDs <= 0 {
		return nil, errors.New("systemReserved and kubeReserved leave no processes to pods")
	}
	c := &classes{burstable: l.Group(path.Join(root, "burstable"))}
	least := uint64(podspec.Shares(0))
	for _, g := range []struct {
		cgroup.Group
		limits cgroup.Limits
	}{
		{l.Group(root), whole},
		{l.Group(path.Join(root, "besteffort")), cgroup.Limits{CPUShares: least}},
		{c.burstable, cgroup.Limits{CPUShares: least}},
	} {
		if err := errors.Join(g.Create(), g.Apply(g.limits)); err != nil {
			return nil, fmt.Errorf("control group %s: %w", g.Path(), err)
		}
	}
	return c, nil
}

// Burstable has the burstable pods weigh what they request of CPUs, in thousandths.
func (c *classes) Burstable(milli int64) error {
	return c.burstable.Apply(cgroup.Limits{CPUShares: uint64(podspec.Shares(milli))})
}

// maxTasks is how many processes and threads the machine can have.
func maxTasks() (int64, error) {
	most := int64(0)
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		if most == 0 || n < most {
			most = n
		}
	}
	return most, nil
}
