package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestThreadGroups(t *testing.T) {
	got := threadGroups("8:pids:/a\n4:memory:/b/c\n3:cpu,cpuacct:/d\n2:name=systemd:/e\n0::/f\nmalformed\n")
	want := map[string]string{"pids": "/a", "memory": "/b/c", "cpu": "/d", "cpuacct": "/d", "name=systemd": "/e", "": "/f"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, not %v", got, want)
	}
}

// What a thread forks while it is in a group begins there; the thread itself goes back,
// and the process has never been there.
func TestJoinThread(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making control groups needs root")
	}
	layout, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	if layout.V1["pids"] == "" {
		t.Skip("this machine has version 2 alone: there is nothing to join by thread")
	}
	g := layout.Group(fmt.Sprintf("/knarr-test-%s%d/thread", filepath.Base(t.TempDir()), os.Getpid()))
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	t.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
		g.Parent().Prune("/")
	})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := read("/proc/thread-self/cgroup")
	leave, err := g.JoinThread()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(read("/proc/thread-self/cgroup"), g.Path()) {
		t.Error("the thread is not in the group")
	}
	if strings.Contains(read("/proc/self/cgroup"), g.Path()) && os.Getpid() != unix.Gettid() {
		t.Error("the whole process is in the group")
	}
	alone := layout
	alone.V2 = ""
	if pids, err := alone.Group(g.Path()).Processes(); err != nil || len(pids) > 0 {
		t.Errorf("in the group are %v, %v: whoever kills them must not kill this process", pids, err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := leave(); err != nil {
		t.Fatal(err)
	}
	if after := read("/proc/thread-self/cgroup"); after != before {
		t.Errorf("the thread went back to\n%s, not\n%s", after, before)
	}
	if !strings.Contains(read(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid)), g.Path()) {
		t.Error("what it forked is not in the group")
	}
}
