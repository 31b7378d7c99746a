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
// "node" that can be prepared, broken and thrown away without touching the machine. The cgroup has two threaded
// children: the node's, with all threads, and the world's, for those that play another machine.
const inside = "KNARR_DATAPATH_TEST_CGROUP"

func nodeCgroup() string  { return filepath.Join(os.Getenv(inside), "node") }
func worldCgroup() string { return filepath.Join(os.Getenv(inside), "world") }

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		if err := os.WriteFile(nodeCgroup()+"/cgroup.procs", []byte("0"), 0); err != nil {
			fmt.Fprintln(os.Stderr, "entering the node's cgroup:", err)
			os.Exit(1)
		}
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
	for _, name := range []string{"node", "world"} {
		child := filepath.Join(cgroup, name)
		if err := os.Mkdir(child, 0o755); err != nil {
			return 0, err
		}
		defer os.Remove(child)
		if err := os.WriteFile(child+"/cgroup.type", []byte("threaded"), 0); err != nil {
			return 0, err
		}
	}
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
	if cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}
