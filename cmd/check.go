package cmd

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// probe is one thing that knarr wants of the machine.
type probe struct {
	name string
	// test returns nil if it is there.
	test func() error
	// without says what knarr does instead; empty: knarr cannot run without it.
	without string
}

func probes() []probe {
	return []probe{
		{"root", func() error {
			if os.Geteuid() != 0 {
				return fmt.Errorf("running as user %d", os.Geteuid())
			}
			return nil
		}, ""},
		{"Linux 5.10 or later", kernelAtLeast(5, 10), ""},
		{"overlayfs", fileSystem("overlay"), ""},
		{"control group v2", mounted("cgroup2"), ""},
		{"memory limits", cgroupController("memory"), "memory limits are not enforced"},
		{"CPU limits", cgroupController("cpu"), "CPU limits are not enforced"},
		{"network namespaces", exists("/proc/self/ns/net"), ""},
		{"eBPF socket hooks", program(ebpf.CGroupSockAddr), ""},
		{"eBPF type information (BTF)", exists("/sys/kernel/btf/vmlinux"), "kernel structures are not read by eBPF programs"},
		{"mount API of Linux 6.7 (lowerdir+)", kernelAtLeast(6, 7), "overlays are mounted by mount(2), with fewer layers"},
		{"exit status by pidfd, Linux 6.15", kernelAtLeast(6, 15), "the exit code of a container that ends while knarr is down may be unknown"},
		{"seccomp", exists("/proc/sys/kernel/seccomp/actions_avail"), "system calls are not filtered"},
		{"CAP_SYS_RESOURCE", capability(unix.CAP_SYS_RESOURCE), "negative oom_score_adj and raised resource limits are not applied"},
		{"AppArmor", exists("/sys/kernel/security/apparmor"), "pods that name an AppArmor profile are refused"},
	}
}

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Tell what this machine's kernel offers, what is missing and what knarr does instead", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			missing := 0
			for _, p := range probes() {
				err := p.test()
				switch {
				case err == nil:
					fmt.Fprintf(c.OutOrStdout(), "ok       %s\n", p.name)
				case p.without != "":
					fmt.Fprintf(c.OutOrStdout(), "without  %s (%v): %s\n", p.name, err, p.without)
				default:
					missing++
					fmt.Fprintf(c.OutOrStdout(), "MISSING  %s: %v\n", p.name, err)
				}
			}
			if missing > 0 {
				return fmt.Errorf("knarr cannot run here: %d requirements are missing", missing)
			}
			return nil
		},
	}
}

func kernelAtLeast(major, minor int) func() error {
	return func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		release := unix.ByteSliceToString(u.Release[:])
		parts := strings.SplitN(release, ".", 3)
		if len(parts) < 2 {
			return fmt.Errorf("kernel %s", release)
		}
		a, _ := strconv.Atoi(parts[0])
		b, _ := strconv.Atoi(strings.TrimRight(parts[1], "-+abcdefghijklmnopqrstuvwxyz"))
		if a < major || a == major && b < minor {
			return fmt.Errorf("kernel %s", release)
		}
		return nil
	}
}

func exists(path string) func() error {
	return func() error {
		_, err := os.Stat(path)
		return err
	}
}

func fileSystem(name string) func() error { return inFile("/proc/filesystems", name) }
func mounted(name string) func() error    { return inFile("/proc/self/mounts", " "+name+" ") }

func inFile(file, text string) func() error {
	return func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !strings.Contains(string(b), text) {
			return fmt.Errorf("not in %s", file)
		}
		return nil
	}
}

// cgroupController looks for a cgroup controller in v2 or v1.
func cgroupController(name string) func() error {
	return func() error {
		for _, f := range []string{"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"} {
			if b, err := os.ReadFile(f); err == nil && strings.Contains(" "+string(b)+" ", name) {
				return nil
			}
		}
		if m, err := filepath.Glob("/sys/fs/cgroup/" + name + "*"); err == nil && len(m) > 0 {
			return nil
		}
		return fmt.Errorf("no %s controller in control groups", name)
	}
}

func program(t ebpf.ProgramType) func() error {
	return func() error { return features.HaveProgramType(t) }
}

func capability(c int) func() error {
	return func() error {
		v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			return err
		}
		if v == 0 {
			return fmt.Errorf("not in the bounding set")
		}
		return nil
	}
}
