package container

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cdi"
)

// hooked are devices of a fixture's whose hooks write into a journal what they see.
type hooked struct {
	*fixture
	dir, journal string
	devices      []map[string]any
}

// hookScript notes a hook's name, its state, and what the commands say that follow.
const hookScript = `#!/bin/sh
state=$(cat)
field() { printf %s "$state" | sed -n 's/.*"'$1'":"*\([^",}]*\).*/\1/p'; }
pid=$(field pid) bundle=$(field bundle)
root=$(sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' "$bundle/config.json")
case $root in /*) ;; *) root=$bundle/$root ;; esac
`

func newHooked(t testing.TB, f *fixture) *hooked {
	h := &hooked{fixture: f, dir: t.TempDir()}
	h.journal = filepath.Join(h.dir, "journal")
	f.cfg.DeviceDirs = []string{h.dir}
	f.Server.cfg.DeviceDirs = f.cfg.DeviceDirs
	return h
}

// hook is one whose commands' output is noted, and whose failure is theirs.
func (h *hooked) hook(stage, commands string) cdi.Hook {
	h.Helper()
	h.n++
	file := filepath.Join(h.dir, fmt.Sprint(stage, h.n, ".sh"))
	text := hookScript + fmt.Sprintf("said=$(exec 2>&1; %s\n)\ncode=$?\nprintf '%%s\\t%%s\\t%%s\\n' \"$1\" \"$state\" \"$said\" >> %s\nexit $code\n", commands, h.journal)
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		h.Fatal(err)
	}
	return cdi.Hook{HookName: stage, Path: file, Args: []string{"hook", stage}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "OF=" + stage}}
}

// inside is a startContainer hook: its path and files are the container's.
func inside(commands string) cdi.Hook {
	return cdi.Hook{HookName: "startContainer", Path: "/bin/sh", Args: []string{"sh", "-c", commands, "hook"}, Env: []string{"PATH=/bin", "OF=startContainer"}}
}

// device makes a device with these hooks and returns what gives it to a container.
func (h *hooked) device(name string, hooks ...cdi.Hook) func(*runtimeapi.ContainerConfig) {
	h.Helper()
	h.devices = append(h.devices, map[string]any{"name": name, "containerEdits": cdi.Edits{Hooks: hooks}})
	data, err := json.Marshal(map[string]any{"cdiVersion": "0.6.0", "kind": "knarr.test/hooked", "devices": h.devices})
	if err != nil {
		h.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "spec.json"), data, 0o600); err != nil {
		h.Fatal(err)
	}
	return func(c *runtimeapi.ContainerConfig) {
		c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "knarr.test/hooked=" + name}}
		c.Annotations = map[string]string{"knarr.test/a": "b"}
	}
}

// note is what a hook wrote into the journal.
type note struct {
	stage, said string
	state       specs.State
}

func (h *hooked) notes() (list []note) {
	h.Helper()
	data, err := os.ReadFile(h.journal)
	if err != nil && !os.IsNotExist(err) {
		h.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		if len(f) != 3 { // what the one before said, continued
			list[len(list)-1].said += "\n" + f[0]
			continue
		}
		n := note{stage: f[0], said: f[2]}
		if err := json.Unmarshal([]byte(f[1]), &n.state); err != nil {
			h.Fatalf("the state %s: %v", f[1], err)
		}
		list = append(list, n)
	}
	return list
}

func (h *hooked) stages() (list []string) {
	h.Helper()
	for _, n := range h.notes() {
		list = append(list, n.stage)
	}
	return list
}

// builtIn is a fixture whose pods the built-in executor runs, whatever the environment says.
func builtIn(t testing.TB) *fixture {
	f := newFixture(t)
	f.handler = ""
	return f
}

// eachExecutor runs a test with the built-in executor and with every other.
func eachExecutor(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Run("knarr", func(t *testing.T) {
		t.Parallel()
		test(t, builtIn(t))
	})
	eachHandler(t, func(t *testing.T, f *fixture, _ string) { test(t, f) })
}

// Hooks are run in order, each where and when the specification has it, and told of the
// container; what they do to its files and mounts is there, though its root is read-only.
func TestHooks(t *testing.T) {
	t.Parallel()
	host, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	h := newHooked(t, builtIn(t))
	use := h.device("all",
		h.hook("poststop", `readlink /proc/self/ns/mnt; ls "$bundle" | grep config.json`),
		h.hook("createContainer", `mkdir "$root/hook" && mount -t tmpfs none "$root/hook" && echo mounted > "$root/hook/file"
			echo written > "$root/etc/hooked"; echo $OF; ls "$root/proc/1/comm" | grep -o proc.*; readlink /proc/self/ns/mnt`),
		h.hook("prestart", "readlink /proc/self/ns/mnt"),
		h.hook("createRuntime", `readlink /proc/self/ns/mnt; ls "/proc/$pid/root/$root/bin/busybox" | grep -o bin/busybox`),
		inside("{ cat; echo; id -u; echo $0 $OF; ls -l /proc/self/ns/mnt; } > /tmp/inside"),
		h.hook("poststart", `readlink /proc/self/ns/mnt; tr '\0' ' ' < /proc/$pid/cmdline | grep -o /tmp/end`),
	)
	tmp := t.TempDir()
	if err := os.Chmod(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	id := h.run(h.sandbox(nil), "cat /etc/hooked /hook/file; until test -e /tmp/end; do sleep 0.02; done; touch /x 2>/dev/null || echo read-only", func(c *runtimeapi.ContainerConfig) {
		use(c)
		c.Linux.SecurityContext.ReadonlyRootfs = true
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		c.Mounts = []*runtimeapi.Mount{{HostPath: tmp, ContainerPath: "/tmp"}}
	})
	pid := h.containers[id].Process.PID
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.wait(id)
	if out, errs := h.logText(id); out != "written\nmounted\nread-only\n" || errs != "" {
		t.Errorf("the container says %q and %q", out, errs)
	}
	bundle := h.pipeDir(id)
	state := func(status specs.ContainerState, pid int) specs.State {
		return specs.State{Version: "1.0.2", ID: id, Status: status, Pid: pid, Bundle: bundle, Annotations: map[string]string{"knarr.test/a": "b"}}
	}
	want := []note{
		{"prestart", host, state("creating", pid)},
		{"createRuntime", host + "\nbin/busybox", state("creating", pid)},
		{"createContainer", "createContainer\nproc/1/comm\n" + own, state("creating", 1)},
		{"poststart", host + "\n/tmp/end", state("running", pid)},
		{"poststop", host + "\nconfig.json", state("stopped", 0)},
	}
	if got := h.notes(); !reflect.DeepEqual(got, want) {
		t.Errorf("the hooks say\n%v, not\n%v", got, want)
	}
	data, err := os.ReadFile(filepath.Join(tmp, "inside"))
	if err != nil {
		t.Fatal(err)
	}
	var st specs.State
	text, rest, _ := strings.Cut(string(data), "\n")
	if err := json.Unmarshal([]byte(text), &st); err != nil || !reflect.DeepEqual(st, state("created", 1)) {
		t.Errorf("inside the state is %s (%v)", text, err)
	}
	if !strings.HasPrefix(rest, "1000\nhook startContainer\n") || !strings.HasSuffix(strings.TrimSpace(rest), own) {
		t.Errorf("inside is said %q", rest)
	}
	if _, err := h.RemoveContainer(h.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if n := len(h.notes()); n != len(want) {
		t.Errorf("removing the container ran %d hooks", n-len(want))
	}
}

// The other executors get the hooks in their configuration. When and where they run them
// is theirs; they all run them, and each once.
func TestHandlerHooks(t *testing.T) {
	eachHandler(t, func(t *testing.T, f *fixture, handler string) {
		h := newHooked(t, f)
		var all []cdi.Hook
		want := []string{"createContainer", "createRuntime", "poststart", "poststop", "prestart"}
		for _, stage := range want {
			does := "true"
			if stage == "createContainer" {
				does = `echo written > "$root/etc/hooked"`
			}
			all = append(all, h.hook(stage, does))
		}
		use := h.device("all", all...)
		id := h.run(h.sandbox(nil), "cat /etc/hooked", use)
		h.wait(id)
		if out, _ := h.logText(id); out != "written\n" {
			t.Errorf("the container says %q", out)
		}
		if got := h.stages(); !slices.Equal(slices.Sorted(slices.Values(got)), want) || got[len(got)-1] != "poststop" {
			t.Errorf("run were %q", got)
		}
	})
}

// With the process namespace of the pod, the host's, users of its own, and a terminal.
func TestHooksInNamespaces(t *testing.T) {
	t.Parallel()
	h := newHooked(t, builtIn(t))
	if err := os.Chmod(filepath.Dir(h.dir), 0o711); err != nil { // as other places of hooks are
		t.Fatal(err)
	}
	use := h.device("d",
		h.hook("createContainer", `echo written > "$root/etc/hooked"; id -u; ls "$root/proc" | grep -c '^1$' || true`),
		inside("id -u > /tmp/inside; echo $$ > /tmp/pid"),
	)
	for _, c := range []struct {
		name string
		pod  func(*runtimeapi.NamespaceOption)
		said string // by the hook: its user, and whether /proc is there
	}{
		{"shared processes", func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD }, "0\n0"},
		{"the host's processes", func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE }, "0\n1"},
		{"users", func(o *runtimeapi.NamespaceOption) {
			ids := []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 1 << 16}}
			o.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
		}, "0\n1"},
	} {
		os.Remove(h.journal)
		// The hook of a container with users of its own writes as one of them.
		if err := os.WriteFile(h.journal, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(h.journal, 0o666); err != nil {
			t.Fatal(err)
		}
		var ns *runtimeapi.NamespaceOption
		pod := h.sandbox(func(p *runtimeapi.PodSandboxConfig) {
			ns = p.Linux.SecurityContext.NamespaceOptions
			c.pod(ns)
		})
		id := h.run(pod, "stat -c %u:%g /etc/hooked; cat /etc/hooked /tmp/inside; tty", func(conf *runtimeapi.ContainerConfig) {
			use(conf)
			conf.Tty = true
			conf.Linux.SecurityContext.NamespaceOptions = ns
		})
		h.wait(id)
		if out, _ := h.logText(id); strings.ReplaceAll(out, "\r", "") != "0:0\nwritten\n0\n/dev/console\n" && strings.ReplaceAll(out, "\r", "") != "0:0\nwritten\n0\n/dev/pts/0\n" {
			t.Errorf("%s: the container says %q", c.name, out)
		}
		if got := h.notes(); len(got) != 1 || got[0].said != c.said {
			t.Errorf("%s: the hook says %v", c.name, got)
		}
	}
}

// A hook that fails or hangs, at any moment, is the container's end: it has the reason,
// nothing runs on, and the poststop hooks are run.
func TestHooksFail(t *testing.T) {
	t.Parallel()
	h := newHooked(t, builtIn(t))
	pod := h.sandbox(nil)
	second := 1
	// A number of seconds that no other test sleeps.
	const asleep = "86399"
	for i, stage := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart"} {
		for how, c := range map[string]struct{ commands, why string }{
			"fails":   {"echo because; exit 3", "because"},
			"hangs":   {"sleep " + asleep + " & sleep " + asleep, "killed, as it had not ended after 1 s"},
			"missing": {"", "no such file or directory"},
		} {
			os.Remove(h.journal)
			var bad cdi.Hook
			if stage == "startContainer" {
				bad = inside(c.commands)
			} else {
				// It says why where nobody notes it.
				bad = h.hook(stage, "true")
				bad.Path, bad.Args = "/bin/sh", []string{"sh", "-c", c.commands}
			}
			if how == "missing" {
				bad.Path = "/nowhere/hook"
			}
			bad.Timeout = &second
			use := h.device(fmt.Sprint(how, i), bad, h.hook("poststop", "true"))
			id := h.create(pod, "sleep "+asleep, use)
			_, err := h.StartContainer(h.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
			if want := stage + " hook " + bad.Path + ": "; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s %s: %v", stage, how, err)
			}
			if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" || st.ExitCode != 128 {
				t.Errorf("%s %s: the container is %v", stage, how, st)
			}
			if got := h.stages(); !slices.Equal(got, []string{"poststop"}) {
				t.Errorf("%s %s: run were %q", stage, how, got)
			}
			if left := sleepers(t, asleep); len(left) > 0 {
				t.Errorf("%s %s: left are processes %v", stage, how, left)
			}
			if pids, err := h.containers[id].group.Processes(); err != nil || len(pids) > 0 {
				t.Errorf("%s %s: left in the group are %v (%v)", stage, how, pids, err)
			}
		}
	}
	if out := h.output(pod, "echo fine", nil); out != "fine\n" {
		t.Errorf("the next container says %q", out)
	}
}

// sleepers are the processes that sleep for so many seconds.
func sleepers(t *testing.T, seconds string) (pids []string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if pid := filepath.Base(filepath.Dir(p)); err == nil && string(data) == "sleep\x00"+seconds+"\x00" && !ends(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// A poststop hook that fails or hangs keeps no container from ending, nor the next hook
// from being run.
func TestHooksAfterTheEnd(t *testing.T) {
	t.Parallel()
	h := newHooked(t, builtIn(t))
	second := 1
	hangs := h.hook("poststop", "sleep 1000")
	hangs.Timeout = &second
	use := h.device("bad", h.hook("poststop", "exit 1"), hangs, h.hook("poststop", "true"))
	id := h.run(h.sandbox(nil), "exit 7", use)
	if st := h.wait(id); st.ExitCode != 7 || st.Reason != "Error" {
		t.Errorf("the container's end is %v", st)
	}
	if got := h.stages(); !slices.Equal(got, []string{"poststop", "poststop"}) { // the second was killed
		t.Errorf("run were %q", got)
	}
}

// Who asks for the start may give up: then its hooks end, too.
func TestHooksGivenUp(t *testing.T) {
	t.Parallel()
	h := newHooked(t, builtIn(t))
	// So far the hook gets.
	ready := filepath.Join(h.dir, "ready")
	use := h.device("hangs", h.hook("createRuntime", "touch "+ready+"; sleep 86398"), h.hook("poststop", "true"))
	id := h.create(h.sandbox(nil), "true", use)
	ctx, cancel := context.WithCancel(h.ctx())
	done := make(chan error, 1)
	go func() {
		_, err := h.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		done <- err
	}()
	await(t, func() bool { _, err := os.Stat(ready); return err == nil }, "the hook does not run")
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "createRuntime hook") {
		t.Errorf("the start answered %v", err)
	}
	if left := sleepers(t, "86398"); len(left) > 0 {
		t.Errorf("left are processes %v", left)
	}
	if got := h.stages(); !slices.Equal(got, []string{"poststop"}) {
		t.Errorf("run were %q", got)
	}
}

// Hooks belong to the container, not to the runtime that made it: one that comes later
// runs them, also when the specification that wants them is gone.
func TestHooksSurviveRestart(t *testing.T) {
	eachExecutor(t, func(t *testing.T, f *fixture) {
		h := newHooked(t, f)
		use := h.device("d", h.hook("createRuntime", "true"), h.hook("poststop", "true"))
		again := func() { h.hand(func() {}) }
		id := h.create(h.sandbox(nil), "sleep 1000", use)
		if err := os.Remove(filepath.Join(h.dir, "spec.json")); err != nil {
			t.Fatal(err)
		}
		again()
		if _, err := h.StartContainer(h.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		again()
		if got := h.stages(); !slices.Equal(got, []string{"createRuntime"}) {
			t.Errorf("before the end were run %q", got)
		}
		if _, err := h.StopContainer(h.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		again()
		if _, err := h.RemoveContainer(h.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		if got := h.stages(); !slices.Equal(got, []string{"createRuntime", "poststop"}) {
			t.Errorf("run were %q", got)
		}
	})
}

// A runtime that ends, or is killed, while a hook runs leaves the rest to the next one.
func TestHooksInterrupted(t *testing.T) {
	t.Parallel()
	h := newHooked(t, builtIn(t))
	ready, goOn := filepath.Join(h.dir, "ready"), filepath.Join(h.dir, "go")
	use := h.device("d", h.hook("poststop", "touch "+ready+"; until test -e "+goOn+"; do sleep 0.02; done"))
	id := h.run(h.sandbox(nil), "exit 5", use)
	await(t, func() bool { _, err := os.Stat(ready); return err == nil }, "the hook does not run")
	h.hand(func() {
		if got := h.stages(); len(got) > 0 {
			t.Errorf("before it could end were run %q", got)
		}
		if err := os.WriteFile(goOn, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	if st := h.wait(id); st.ExitCode != later(5) {
		t.Errorf("the container's end is %v", st)
	}
	if got := h.stages(); !slices.Equal(got, []string{"poststop"}) {
		t.Errorf("run were %q", got)
	}
}

// Killed while a hook hangs in a start: the hook ends with the runtime, and the next one
// ends the container and runs its last hooks.
func TestHooksKilled(t *testing.T) {
	t.Parallel()
	h := newHooked(t, builtIn(t))
	for i, stage := range []string{"createRuntime", "createContainer", "startContainer", "poststart"} {
		os.Remove(h.journal)
		ready := filepath.Join(h.dir, "ready"+stage)
		asleep := fmt.Sprint(86390 + i)
		hang := inside("touch /shared/ready" + stage + "; exec sleep " + asleep)
		if stage != "startContainer" {
			hang.HookName, hang.Args[2] = stage, "touch "+ready+"; exec sleep "+asleep
		}
		use := h.device(stage, hang, h.hook("poststop", "true"))
		conf := &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: h.image}, Command: []string{"sleep", "1000"}, LogPath: "c.log",
			Linux:  &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
			Mounts: []*runtimeapi.Mount{{HostPath: h.dir, ContainerPath: "/shared"}},
		}
		use(conf)
		h.hand(func() {
			c := h.child(order{Do: "victim", Pod: message[*runtimeapi.PodSandboxConfig]{h.podConfig(nil)}, Make: []message[*runtimeapi.ContainerConfig]{{m: conf}}})
			await(t, func() bool { _, err := os.Stat(ready); return err == nil }, stage+": the hook does not run")
			c.kill()
			h.inherit("killed in the hook " + stage)
		})
		if got := h.stages(); !slices.Equal(got, []string{"poststop"}) {
			t.Errorf("%s: run were %q", stage, got)
		}
		if left := sleepers(t, asleep); len(left) > 0 {
			t.Errorf("%s: left are processes %v", stage, left)
		}
	}
}
