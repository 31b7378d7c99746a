package container

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/oci/external"
)

// eachHandler runs a test for every runtime handler whose program is installed.
// Without runc, crun and runsc (gVisor, which test/run builds from the module
// test/gvisor) in PATH these are left out, and the output says so.
func eachHandler(t *testing.T, test func(t *testing.T, f *fixture, handler string)) {
	for _, name := range []string{"runc", "crun", "runsc"} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("%s is not installed", name)
			}
			t.Parallel()
			f := newFixture(t)
			f.handler = name
			test(t, f, name)
		})
	}
}

func TestHandlerRuns(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		pod := f.sandbox(nil)
		id := f.run(pod, "echo out; echo err >&2; exit 3", nil)
		st := f.wait(id)
		if st.ExitCode != 3 || st.Reason != "Error" {
			t.Errorf("status is %v", st)
		}
		if out, errs := f.logText(id); out != "out\n" || errs != "err\n" {
			t.Errorf("log holds %q and %q", out, errs)
		}
		for _, c := range []struct{ name, script, want string }{
			{"host name", "hostname; cat /etc/hostname", "pod-host\npod-host\n"},
			{"resolv.conf", "cat /etc/resolv.conf", "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"},
			{"process numbers", "echo $$", "1\n"},
			{"home", "echo $HOME", "/root\n"},
			{"working directory", "pwd", "/made/here\n"},
			{"read-only", "echo 1 2>/dev/null > /proc/sys/kernel/domainname || echo refused", "refused\n"},
			{"sysfs read-only", "touch /sys/x 2>/dev/null || echo refused", "refused\n"},
			{"capabilities", "grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb\n"},
			{"unshare refused", "unshare -m true 2>&1 | grep -c 'not permitted'", "1\n"},
			{"shared memory", "df -k /dev/shm | tail -1 | grep -o 65536 | head -1", "65536\n"},
			{"user", "id -u; id -g; id -G", "0\n0\n0\n"},
		} {
			got := f.output(pod, c.script, func(conf *runtimeapi.ContainerConfig) { conf.WorkingDir = "/made/here" })
			if got != c.want {
				t.Errorf("%s: %s\nsays %q, not %q", c.name, c.script, got, c.want)
			}
		}
	})
}

func TestHandlerExec(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		id := f.run(f.sandbox(nil), "trap 'echo bye; exit 5' TERM; while true; do sleep 0.1; done", nil)
		r := f.exec(id, "sh", "-c", "echo hello; hostname >&2; exit 7")
		if string(r.Stdout) != "hello\n" || string(r.Stderr) != "pod-host\n" || r.ExitCode != 7 {
			t.Errorf("exec answered %v", r)
		}
		_, err := f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"nothing-of-the-kind"}})
		if err == nil || !strings.Contains(err.Error(), "nothing-of-the-kind") {
			t.Errorf("an unknown command answered %v", err)
		}
		_, err = f.ExecSync(f.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "77"}, Timeout: 1})
		if err == nil || !strings.Contains(err.Error(), "timed out") {
			t.Errorf("a command beyond its time answered %v", err)
		}
		if r := f.exec(id, "sh", "-c", "ps | grep -c '[s]leep 77'"); string(r.Stdout) != "0\n" {
			t.Errorf("the command beyond its time lives on: %q", r.Stdout)
		}
		if _, err := f.StopContainer(f.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
			t.Fatal(err)
		}
		if st := f.status(id); st.ExitCode != 5 {
			t.Errorf("the container that was asked to end: %v", st)
		}
		if out, _ := f.logText(id); out != "bye\n" {
			t.Errorf("its last words: %q", out)
		}
	})
}

func TestHandlerTerminal(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		id := f.run(f.sandbox(nil), "read line; echo got $line", func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true })
		attach(t, f, id, true, "got line")
		if st := f.wait(id); st.ExitCode != 0 {
			t.Errorf("the container ended with %v", st)
		}
	})
}

func TestHandlerStartFails(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		id := f.create(f.sandbox(nil), "", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"nothing-of-the-kind"} })
		_, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), "nothing-of-the-kind") {
			t.Errorf("starting an unknown program answered %v", err)
		}
		if st := f.status(id); st.Reason != "StartError" || st.ExitCode != 128 {
			t.Errorf("status is %v", st)
		}
	})
}

// What a handler cannot do is refused, not left out.
func TestHandlerRefuses(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		pod, vol := f.sandbox(nil), t.TempDir()
		for _, c := range []struct {
			name   string
			change func(*runtimeapi.ContainerConfig)
			script string
		}{
			{"recursively read-only", func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{HostPath: vol, ContainerPath: "/vol", Readonly: true, RecursiveReadOnly: true}}
			}, "touch /vol/x || exit 0; exit 1"},
			{"the host's processes", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
			}, "test $$ -ne 1"},
		} {
			id := f.create(pod, c.script, c.change)
			_, err := f.StartContainer(f.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
			switch {
			case err == nil && f.wait(id).ExitCode != 0:
				t.Errorf("%s: the container runs, and not as it was asked", c.name)
			case err != nil && !strings.Contains(err.Error(), "runtime handler"):
				t.Errorf("%s: %v", c.name, err)
			case err != nil:
				t.Log(err)
			}
		}
		if handler != "runsc" {
			return
		}
		_, err := f.RunPodSandbox(f.ctx(), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: handler, Config: f.podConfig(func(c *runtimeapi.PodSandboxConfig) {
			ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 1 << 20, Length: 1 << 16}}
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
		})})
		if err == nil || !strings.Contains(err.Error(), "has no user namespaces") {
			t.Errorf("a pod with a user namespace: %v", err)
		}
	})
}

// Volumes are seen, propagated and read-only as asked.
func TestHandlerVolumes(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		vol := t.TempDir()
		if err := os.WriteFile(vol+"/file", []byte("text\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			script, want string
			mount        *runtimeapi.Mount
		}{
			{"cat /vol/file; echo more > /vol/new; cat /vol/new", "text\nmore\n", &runtimeapi.Mount{HostPath: vol, ContainerPath: "/vol"}},
			{"cat /vol/file; touch /vol/x 2>/dev/null || echo refused", "text\nrefused\n", &runtimeapi.Mount{HostPath: vol, ContainerPath: "/vol", Readonly: true}},
			{"cat /etc/one", "text\n", &runtimeapi.Mount{HostPath: vol + "/file", ContainerPath: "/etc/one", Readonly: true}},
			{"cat /img/etc/group | head -1; touch /img/x 2>/dev/null || echo refused", "root:x:0:\nrefused\n", &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: f.image}, ContainerPath: "/img", Readonly: true}},
		} {
			got := f.output(f.sandbox(nil), c.script, func(conf *runtimeapi.ContainerConfig) { conf.Mounts = []*runtimeapi.Mount{c.mount} })
			if got != c.want {
				t.Errorf("%s\nsays %q, not %q", c.script, got, c.want)
			}
		}
	})
}

func TestHandlerLimits(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		pod := f.sandbox(nil)
		limit := func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}
		}
		if st := f.wait(f.run(pod, "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; exec tail -c 200000000 /dev/zero", limit)); st.Reason != "OOMKilled" {
			t.Errorf("a container that takes too much memory: %v", st)
		}
		id := f.run(pod, "sleep 1000", limit)
		if _, err := f.UpdateContainerResources(f.ctx(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 256 << 20},
		}); err != nil {
			t.Fatal(err)
		}
		stats, err := f.ContainerStats(f.ctx(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		if used := stats.Stats.Memory.WorkingSetBytes.GetValue(); used == 0 || used > 256<<20 {
			t.Errorf("the container's memory is %d", used)
		}
		if pids, err := f.containers[id].group.Processes(); err != nil || len(pids) == 0 {
			t.Errorf("the container's group holds %v (%v)", pids, err)
		}
	})
}

func TestHandlerSurvivesKill(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) { survivesKill(t, f) })
}

func TestUnknownHandler(t *testing.T) {
	f := newFixture(t)
	f.cfg.Handlers = map[string]external.Config{"gone": {Path: "/nowhere/runc"}}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.Server, err = New(context.Background(), f.cfg); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ handler, why string }{
		{"nothing-of-the-kind", `no runtime for "nothing-of-the-kind" is configured`},
		{"gone", `its program /nowhere/runc is not installed`},
	} {
		_, err := f.RunPodSandbox(f.ctx(), &runtimeapi.RunPodSandboxRequest{Config: f.podConfig(nil), RuntimeHandler: c.handler})
		if err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("handler %q answered %v", c.handler, err)
		}
	}
}

// What is installed is listed at once; what it can do is known a little later.
func TestHandlersInStatus(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	find := func(name string) *runtimeapi.RuntimeHandler {
		st, err := f.Status(f.ctx(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range st.RuntimeHandlers {
			if h.Name == name {
				return h
			}
		}
		return nil
	}
	for _, name := range []string{"runc", "crun", "runsc"} {
		_, err := exec.LookPath(name)
		if got := find(name); (got == nil) != (err != nil) {
			t.Errorf("%s: %v, though looking for it says %v", name, got, err)
		}
	}
	if find("runc") == nil {
		t.Skip("runc is not installed")
	}
	await(t, func() bool { return find("runc").Features.RecursiveReadOnlyMounts }, "what runc can do is not known")
}
