package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A containerd of a test leaves shims, mounts and network namespaces if the test is
// cut off: those of its folder are found by its path, the namespaces by what there
// was before (the file below) and that no process is in them.
const (
	containerdDirs = "/tmp/knarr-cd-*"
	namespacesFile = "namespaces-before"
	cniNamespaces  = "/run/netns/cni-*"
)

// noteNamespaces remembers which network namespaces there are.
func noteNamespaces(t *testing.T, dir string) {
	t.Helper()
	have, err := filepath.Glob(cniNamespaces)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, namespacesFile), []byte(strings.Join(have, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// sweepContainerd removes what tests left that were cut off: their containerd, if it
// still runs, has lost its test.
func sweepContainerd(t *testing.T) {
	t.Helper()
	dirs, err := filepath.Glob(containerdDirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		owner, err := os.ReadFile(filepath.Join(dir, "owner"))
		if err != nil {
			continue // it is being made
		}
		pid, _ := strconv.Atoi(string(owner))
		if pid > 0 && unix.Kill(pid, 0) == nil {
			continue // another test
		}
		cleanContainerd(t, dir)
	}
}

// cleanContainerd ends the processes of a containerd that are left and removes what
// they had.
func cleanContainerd(t *testing.T, dir string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(b, []byte(dir+"/")) || !bytes.HasPrefix(filepathBase(b), []byte("containerd")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			killTree(t, pid)
		}
	}
	unmountBelow(t, dir)
	before, _ := os.ReadFile(filepath.Join(dir, namespacesFile))
	known := map[string]bool{}
	for _, n := range strings.Split(string(before), "\n") {
		known[n] = true
	}
	left, err := filepath.Glob(cniNamespaces)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range left {
		if known[n] || inhabited(n) {
			continue
		}
		t.Logf("removing network namespace %s, which a containerd has left", n)
		if err := unix.Unmount(n, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", n, err)
		}
		if err := os.Remove(n); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// filepathBase is the name of the program of a command line.
func filepathBase(cmdline []byte) []byte {
	program, _, _ := bytes.Cut(cmdline, []byte{0})
	return program[bytes.LastIndexByte(program, '/')+1:]
}

// killTree kills a process and its children, and waits until it has gone.
func killTree(t *testing.T, pid int) {
	t.Helper()
	children, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, f := range children {
		b, _ := os.ReadFile(f)
		for _, c := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(c); err == nil {
				killTree(t, n)
			}
		}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has gone
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err == nil {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((5 * time.Second).Milliseconds()))
	}
}

func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", points[i], err)
		}
	}
}

// inhabited tells whether a process is in a network namespace.
func inhabited(path string) bool {
	var want, have unix.Stat_t
	if unix.Stat(path, &want) != nil {
		return false
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, p := range procs {
		if unix.Stat(p, &have) == nil && have.Ino == want.Ino && have.Dev == want.Dev {
			return true
		}
	}
	return false
}
