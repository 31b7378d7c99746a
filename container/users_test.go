package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func oneRange(host, size uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: 0, HostId: host, Length: size}}
}

// inUsers puts a pod into a user namespace of its own.
func inUsers(host uint32) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		m := oneRange(host, 65536)
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: m, Gids: m}
	}
}

func TestUserNamespace(t *testing.T) { userNamespace(t, builtIn(t), true) }

// Other programs let those who may mount in the container lift what hides parts of /proc.
func TestHandlerUserNamespace(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		if handler != "runsc" { // refused: see TestHandlerRefuses
			userNamespace(t, f, false)
		}
	})
}

func userNamespace(t *testing.T, f *fixture, own bool) {
	if !f.shifts() {
		t.Skip("this machine has no id-mapped mounts")
	}
	const host = 0x7000_0000
	pod := f.sandbox(inUsers(host))
	vol := t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "mine"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := func(c *runtimeapi.ContainerConfig) {
		m := oneRange(host, 65536)
		c.Mounts = []*runtimeapi.Mount{{HostPath: vol, ContainerPath: "/vol", UidMappings: m, GidMappings: m}}
	}
	asAdmin := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = nil
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}
	asUser := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		c.Linux.SecurityContext.SupplementalGroups = []int64{3000}
	}
	for _, c := range []struct {
		name, script, want string
		change             func(*runtimeapi.ContainerConfig)
	}{
		{"map", "echo $(cat /proc/self/uid_map); echo $(cat /proc/self/gid_map)", "0 1879048192 65536\n0 1879048192 65536\n", nil},
		{"image files", "stat -c '%u %g' /bin/busybox /etc /", "0 0\n0 0\n0 0\n", nil},
		{"own files", "touch /x; mkdir /y; stat -c '%u' /x /y; chroot / true; echo $?", "0\n0\n0\n", nil},
		{"hostname", "hostname; stat -c %u /etc/hostname", "pod-host\n0\n", nil},
		{"user", "id -u; id -G; echo yes > /dev/stdout; touch /tmp/a; stat -c %u /tmp/a", "1000\n1001 2000 3000\nyes\n1000\n", asUser},
		{"devices", "echo x > /dev/null; stat -c '%u %a' /dev/null /dev; head -c 4 /dev/urandom | wc -c", "0 666\n0 755\n4\n", nil},
		{"volume", "cat /vol/mine; stat -c %u /vol/mine; touch /vol/new; stat -c %u /vol/new", "x0\n0\n", volume},
		{"working directory", "pwd; stat -c %u .", "/made/here\n0\n", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/made/here" }},
		{"mounting", "mount -t tmpfs none /tmp && touch /tmp/z && ls /tmp", "z\n", asAdmin},
		{"not unmounting", "umount /proc/keys 2>/dev/null || echo refused; umount /etc/hostname 2>/dev/null || echo refused", "refused\nrefused\n", asAdmin},
		{"no module", "mknod /dev/vda b 254 0 2>/dev/null || echo refused", "refused\n", asAdmin},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.TB = t
			switch {
			case own:
			case c.name == "not unmounting":
				return
			case c.name == "devices": // are the host's, whose root nobody is there
				c.want = strings.Replace(c.want, "0 666", "65534 666", 1)
			}
			if got := f.output(pod, c.script, c.change); got != c.want {
				t.Errorf("%s\nsays %q, not %q", c.script, got, c.want)
			}
		})
	}
	f.TB = t
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(vol, "new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("on the host the new file is of user %d (%v)", st.Uid, err)
	}
	id := f.run(pod, "sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Tty = true; c.Stdin = true })
	if r := f.exec(id, "sh", "-c", "id -u; hostname; cat /proc/self/uid_map | wc -l; ls /proc/1/root | wc -l"); !strings.HasPrefix(string(r.Stdout), "0\npod-host\n1\n") || r.ExitCode != 0 {
		t.Errorf("exec answered %v", r)
	}
	var rec containerRecord
	if err := load(f.containerRecord(id), &rec); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(fmt.Sprint("/proc/", rec.Process.PID), &st); err != nil || st.Uid != host {
		t.Errorf("on the host the process is of user %d (%v)", st.Uid, err)
	}
	sharedProcesses(t, f, host)
}

// sharedProcesses: a pod's containers see each other, and its first process, which nothing
// that is meant for the runtime reaches.
func sharedProcesses(t *testing.T, f *fixture, host uint32) {
	pod := f.sandbox(func(c *runtimeapi.PodSandboxConfig) {
		inUsers(host)(c)
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	shared := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}
	other := f.run(pod, "exec sleep 4321", shared)
	const script = "stat -c %u /proc/1; echo $(cat /proc/self/uid_map); for p in /proc/[0-9]*; do if grep -q sleep $p/comm; then kill ${p#/proc/} && echo killed; fi; done"
	want := fmt.Sprintf("0\n0 %d 65536\nkilled\n", host)
	if out := f.output(pod, script, shared); out != want {
		t.Errorf("with shared processes it says %q, not %q", out, want)
	}
	if st := f.wait(other); st.ExitCode != 128+15 {
		t.Errorf("the other container ended with %d", st.ExitCode)
	}
	var rec podRecord
	if err := load(f.podRecord(pod), &rec); err != nil {
		t.Fatal(err)
	}
	if group, err := unix.Getpgid(rec.Pause.PID); err != nil || group == unix.Getpgrp() {
		t.Errorf("the pod's first process is in the process group of the runtime (%v)", err)
	}

	pod = f.sandbox(inUsers(host))
	target := f.run(pod, "exec sleep 4321", nil)
	if out := f.output(pod, "cat /proc/1/comm; stat -c %u /proc/1", func(c *runtimeapi.ContainerConfig) {
		o := c.Linux.SecurityContext.NamespaceOptions
		o.Pid, o.TargetId = runtimeapi.NamespaceMode_TARGET, target
	}); out != "sleep\n0\n" {
		t.Errorf("beside its target a container says %q", out)
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	f := newFixture(t)
	for name, change := range map[string]func(*runtimeapi.NamespaceOption){
		"two ranges": func(o *runtimeapi.NamespaceOption) {
			o.UsernsOptions.Uids = append(oneRange(1000, 10), oneRange(5000, 10)...)
		},
		"not from 0": func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].ContainerId = 1 },
		"unlike":     func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids = oneRange(2000, 65536) },
		"none":       func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids = nil },
		"container":  func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = runtimeapi.NamespaceMode_CONTAINER },
		"host net":   func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE },
	} {
		conf := f.podConfig(func(c *runtimeapi.PodSandboxConfig) {
			inUsers(1000)(c)
			change(c.Linux.SecurityContext.NamespaceOptions)
		})
		if _, err := f.RunPodSandbox(f.ctx(), &runtimeapi.RunPodSandboxRequest{Config: conf}); status.Code(coded(err)) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
