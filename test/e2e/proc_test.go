package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// processes maps the command line of each container's first process to its number.
func (c *cluster) processes() map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, d := range c.containerProcs() {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil || !firstInNamespace(d) {
			continue
		}
		env, _ := os.ReadFile(d + "/environ")
		out[string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '}))+hostname(env)] = filepath.Base(d)
	}
	return out
}

func hostname(env []byte) string {
	for _, v := range strings.Split(string(env), "\x00") {
		if strings.HasPrefix(v, "HOSTNAME=") {
			return v
		}
	}
	return ""
}

// containerProcs lists the /proc folders of processes in this cluster's control
// groups, without the runtime's own.
func (c *cluster) containerProcs() []string {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		c.t.Fatal(err)
	}
	// A further node's group has its number behind the name.
	mine := regexp.MustCompile("/" + c.name + "(-[0-9]+)?/kubepods")
	var out []string
	for _, d := range dirs {
		cg, err := os.ReadFile(d + "/cgroup")
		if err == nil && mine.Match(cg) {
			out = append(out, d)
		}
	}
	return out
}

func firstInNamespace(proc string) bool {
	b, err := os.ReadFile(proc + "/status")
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, "NSpid:"); ok {
			f := strings.Fields(rest)
			return len(f) > 1 && f[len(f)-1] == "1"
		}
	}
	return false
}

// rootOf returns /proc/PID/root of a pod's only container.
func (c *cluster) rootOf(pod string) string {
	c.t.Helper()
	for _, d := range c.containerProcs() {
		env, err := os.ReadFile(d + "/environ")
		if err == nil && hostname(env) == "HOSTNAME="+pod && firstInNamespace(d) {
			return d + "/root"
		}
	}
	c.t.Fatalf("pod %s has no process", pod)
	return ""
}

func touch(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// awaitGone blocks until the process of a /proc/PID/root has ended.
func awaitGone(t *testing.T, root string) {
	t.Helper()
	var pid int
	for _, ch := range filepath.Base(filepath.Dir(root)) {
		pid = pid*10 + int(ch-'0')
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 20000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("process %d did not end: %v", pid, err)
		}
		return
	}
}
