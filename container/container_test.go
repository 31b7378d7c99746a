package container

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRunAndLogs(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "echo out; echo err >&2; exit 3", nil)
	st := f.wait(id)
	if st.ExitCode != 3 || st.Reason != "Error" || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("status is %v", st)
	}
	out, errs := f.logText(id)
	if out != "out\n" || errs != "err\n" {
		t.Errorf("log holds %q and %q", out, errs)
	}
}

func TestInside(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(nil)
	for _, c := range []struct{ name, script, want string }{
		{"host name", "hostname; cat /etc/hostname", "pod-host\npod-host\n"},
		{"resolv.conf", "cat /etc/resolv.conf", "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"},
		{"process numbers", "echo $$", "1\n"},
		{"home", "echo $HOME", "/root\n"},
		{"network", "ls /sys/class/net", "lo\n"},
		{"masked", "wc -c < /proc/keys; ls /sys/firmware | wc -l", "0\n0\n"},
		{"read-only", "echo 1 2>/dev/null > /proc/sys/kernel/domainname || echo refused", "refused\n"},
		{"sysfs read-only", "touch /sys/x 2>/dev/null || echo refused", "refused\n"},
		{"capabilities", "grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb\n"},
		{"seccomp on", "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
		{"unshare refused", "unshare -n true 2>&1 | grep -c 'not permitted'", "1\n"},
		{"raw devices refused", "mknod /dev/vda b 254 0 && dd if=/dev/vda of=/dev/null count=1 2>&1 | grep -c 'not permitted'", "1\n"},
		{"shared memory", "df -k /dev/shm | tail -1 | grep -o 65536 | head -1", "65536\n"},
		{"cgroup namespace", "grep ^0: /proc/self/cgroup", "0::/\n"},
		{"devices", "ls /dev | tr '\\n' ' '", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.TB = t
			if got := f.output(pod, c.script, nil); got != c.want && c.want != "" {
				t.Errorf("%s\nsays %q, not %q", c.script, got, c.want)
			}
		})
	}
	f.TB = t
}

func TestExecSync(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "sleep 1000", nil)
	r := f.exec(id, "sh", "-c", "echo hello; hostname >&2; exit 7")
	if string(r.Stdout) != "hello\n" || string(r.Stderr) != "pod-host\n" || r.ExitCode != 7 {
		t.Errorf("exec answered %v", r)
	}
	// A program that cannot be started leaves nothing in the container's group.
	for _, cmd := range []string{"nothing-of-the-kind", "/etc/passwd"} {
		if r, err := f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{cmd}}); err == nil {
			t.Errorf("executing %s answered %v", cmd, r)
		}
	}
	if _, err := f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "100"}, Timeout: 1}); err == nil || !strings.Contains(err.Error(), "timed out") {
		t.Errorf("a command beyond its time answered %v", err)
	}
	removed(t, f, pod)
}

// A command that is given up while it is being started leaves nothing either, however
// far it has come.
func TestExecGivenUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	pod := f.sandbox(nil)
	id := f.run(pod, "sleep 1000", nil)
	start := time.Now()
	f.exec(id, "true")
	whole := time.Since(start)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				ctx, cancel := context.WithTimeout(f.ctx(), rand.N(whole))
				if r, err := f.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "100"}}); err == nil {
					t.Errorf("a command that was given up answered %v", r)
				}
				cancel()
			}
		})
	}
	all.Wait()
	removed(t, f, pod)
}

// Neither does one that is being started while its container is killed.
func TestExecWhileKilled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for range 30 {
		pod := f.sandbox(nil)
		id := f.run(pod, "sleep 1000", nil)
		var all sync.WaitGroup
		ended := make(chan struct{}, 100)
		for range 4 {
			all.Go(func() {
				for f.Context().Err() == nil {
					if _, err := f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); err != nil {
						return
					}
					select {
					case ended <- struct{}{}:
					default:
					}
				}
			})
		}
		for range rand.N(6) { // commands have ended, others are under way
			<-ended
		}
		removed(t, f, pod)
		all.Wait()
	}
}

// removed removes a pod: at once, as nothing is left that would have to be waited for.
func removed(t *testing.T, f *fixture, pod string) {
	t.Helper()
	start := time.Now()
	if _, err := f.RemovePodSandbox(f.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("removing the pod took %v", took)
	}
}

// What fails to start among the shared processes of a pod leaves none there.
func TestStartErrorAmongSharedProcesses(t *testing.T) {
	f := newFixture(t)
	pod := f.sandbox(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	id := f.create(pod, "", func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"nothing-of-the-kind"}
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	_, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "not found in $PATH") {
		t.Errorf("starting answered %v", err)
	}
	removed(t, f, pod)
}
