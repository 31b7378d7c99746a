package datapath

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// The tests are run in a process of their own, inside a network namespace, mount namespace and cgroup made for it: a
// "node" that can be prepared, broken and thrown away without touching the machine.
const inside = "KNARR_DATAPATH_TEST_CGROUP"

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	code, err := isolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, "isolating the tests (root, cgroup2 and namespaces are needed):", err)
		code = 1
	}
	os.Exit(code)
}

func isolated() (int, error) {
	root, err := cgroupRoot()
	if err != nil {
		return 0, err
	}
	cgroup, err := os.MkdirTemp(root, "knarr-datapath-test-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(cgroup)
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"="+cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(dir.Fd()),
		Pdeathsig: syscall.SIGKILL,
	}
	err = cmd.Run()
	if leftovers, _ := filepath.Glob(cgroup + "/*/cgroup.procs"); len(leftovers) > 0 {
		return 0, fmt.Errorf("tests left cgroups: %v", leftovers)
	}
	if cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}
