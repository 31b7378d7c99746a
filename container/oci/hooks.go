package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Hooks are run as https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks
// has them:
//
//	prestart, createRuntime   in the runtime's namespaces, when the container's tree is
//	                          mounted and its first process waits before it enters that
//	createContainer           then, in the container's namespaces: the host's files are
//	                          there, and the tree at the bundle's root
//	startContainer            in the container, as its user, before its program
//	poststart                 in the runtime's namespaces, when the program runs
//	poststop                  there, when the container has ended, or could not be started
//
// One that fails, but for poststop, fails the start.

// VersionOCI is that of the runtime specification which states and bundles follow.
const VersionOCI = "1.0.2"

// ConfigFile is the name of a bundle's description.
const ConfigFile = "config.json"

// HookError says that a hook failed.
type HookError struct {
	Stage, Path string // as the specification names the stage
	Err         error
	Output      string // the end of what it said
}

func (e *HookError) Error() string {
	text := fmt.Sprintf("%s hook %s: %v", e.Stage, e.Path, e.Err)
	if e.Output != "" {
		text += ": " + e.Output
	}
	return text
}

// run is how a hook of some stage is run. It kills it when ctx ends.
type run func(ctx context.Context, h *specs.Hook, stdio Stdio) error

// runHooks runs hooks one after the other; each is told state. The first that fails is
// the last.
func runHooks(ctx context.Context, stage string, hooks []specs.Hook, state *specs.State, how run) error {
	for i := range hooks {
		if err := runHook(ctx, stage, &hooks[i], state, how); err != nil {
			return err
		}
	}
	return nil
}

func runHook(ctx context.Context, stage string, h *specs.Hook, state *specs.State, how run) error {
	fail := func(err error, output string) error {
		return &HookError{Stage: stage, Path: h.Path, Err: err, Output: output}
	}
	data, err := json.Marshal(state)
	if err != nil {
		return fail(err, "")
	}
	in, err := blobFile("knarr-state", data)
	if err != nil {
		return fail(err, "")
	}
	defer in.Close()
	if _, err := in.Seek(0, 0); err != nil {
		return fail(err, "")
	}
	said, out, err := listen()
	if err != nil {
		return fail(err, "")
	}
	limited, cancel := ctx, context.CancelFunc(func() {})
	if h.Timeout != nil {
		limited, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
	}
	defer cancel()
	err = how(limited, h, Stdio{In: in, Out: out, Err: out})
	text := said.end(out)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("killed, as it had not ended after %d s", *h.Timeout)
	}
	if err != nil {
		return fail(err, text)
	}
	return nil
}

// hookArgs is argv, whose first word need not be the path.
func hookArgs(h *specs.Hook) []string {
	if len(h.Args) == 0 {
		return []string{h.Path}
	}
	return h.Args
}

// inRuntime runs hooks in the namespaces of this process, from the folder dir. They end
// with this process.
func inRuntime(dir string) run {
	return func(ctx context.Context, h *specs.Hook, stdio Stdio) error {
		return OnThread(func() error { // the calling thread may be in a container's namespaces
			cmd := exec.CommandContext(ctx, h.Path)
			cmd.Args, cmd.Env, cmd.Dir = hookArgs(h), append([]string{}, h.Env...), dir
			cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
			cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
			cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
			return cmd.Run()
		})
	}
}

// hookChild waits for a hook that runs in a container's namespaces.
func hookChild(ctx context.Context, child *Child) error {
	stop := context.AfterFunc(ctx, func() {
		if !child.Ended() {
			_ = unix.Kill(-child.PID, unix.SIGKILL) // it leads a session
		}
		_ = child.Signal(unix.SIGKILL)
	})
	defer stop()
	code, err := child.Wait(context.WithoutCancel(ctx))
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	return errors.Join(err, child.Close())
}

// hooks are those of a container that is being started.
type hooks struct {
	*specs.Hooks
	l    *Launcher
	spec *Spec
	cg   Cgroup
	root int // the container's root
}

// flags say at which moments the container's first process waits.
func (h *hooks) flags() (f uint32) {
	if h.beforeRoot() {
		f |= flagCreated
	}
	if len(h.StartContainer) > 0 {
		f |= flagStarting
	}
	return f
}

// beforeRoot: some are run before the container's process enters its root.
func (h *hooks) beforeRoot() bool {
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0
}

// run is called, on the thread whose namespaces the container has, while its first process
// child waits at a moment: see c/init.c.
func (h *hooks) run(ctx context.Context, moment int32, child *Child) error {
	switch moment {
	case 1:
		return h.created(ctx, child)
	case 2:
		return h.starting(ctx, child)
	}
	return fmt.Errorf("the container's process waits at an unknown moment, %d", moment)
}

func (h *hooks) created(ctx context.Context, child *Child) error {
	st := state(h.spec.ID, specs.StateCreating, child.PID, h.spec.Bundle, h.spec.Annotations)
	inHost := inRuntime(h.spec.Bundle)
	if err := runHooks(ctx, "prestart", h.Prestart, st, inHost); err != nil {
		return err
	}
	if err := runHooks(ctx, "createRuntime", h.CreateRuntime, st, inHost); err != nil {
		return err
	}
	if err := h.createContainer(ctx, child, st); err != nil {
		return err
	}
	if h.spec.ReadonlyRootfs { // not before: hooks prepare it
		return (&tree{root: h.root}).lockRoot()
	}
	return nil
}

func (h *hooks) createContainer(ctx context.Context, child *Child, st *specs.State) (err error) {
	if len(h.CreateContainer) == 0 {
		return nil
	}
	if st.Pid, err = innerPID(child.PID); err != nil {
		return err
	}
	if h.spec.Namespaces.PID == Private {
		// Others' process namespaces are not entered: who may trace in them could reach the
		// host's files through the hook.
		if err := setns(fmt.Sprintf("/proc/%d/ns/pid", child.PID), unix.CLONE_NEWPID); err != nil {
			return err
		}
	}
	caps := h.l.Permitted(Caps{Bounding: AllCaps, Effective: AllCaps})
	return runHooks(ctx, "createContainer", h.CreateContainer, st, func(ctx context.Context, hook *specs.Hook, stdio Stdio) error {
		p, err := h.l.spawn(ctx, &job{
			args: hookArgs(hook), env: hook.Env, cfg: &initConfig{cwd: h.spec.Bundle, program: hook.Path, caps: caps},
			stdio: stdio, extra: -1, users: h.spec.Users, cgroup: h.cg, oomScore: h.spec.OOMScoreAdj,
		})
		if err != nil {
			return err
		}
		return hookChild(ctx, p)
	})
}

func (h *hooks) starting(ctx context.Context, child *Child) error {
	return OnThread(func() error { // the calling thread's root is the container's by now
		pid, err := innerPID(child.PID)
		if err != nil {
			return err
		}
		st := state(h.spec.ID, specs.StateCreated, pid, h.spec.Bundle, h.spec.Annotations)
		return runHooks(ctx, "startContainer", h.StartContainer, st, func(ctx context.Context, hook *specs.Hook, stdio Stdio) error {
			p, err := h.l.exec(ctx, &ExecSpec{
				ID: h.spec.ID, Args: hookArgs(hook), Env: hook.Env, Cwd: "/", Target: child, OOMScoreAdj: h.spec.OOMScoreAdj,
				Users: h.spec.Users, Process: h.spec.Process,
			}, hook.Path, stdio, h.cg)
			if err != nil {
				return err
			}
			return hookChild(ctx, p)
		})
	})
}

// started runs the hooks for a container whose program runs.
func (h *hooks) started(ctx context.Context, child *Child) error {
	st := state(h.spec.ID, specs.StateRunning, child.PID, h.spec.Bundle, h.spec.Annotations)
	return runHooks(ctx, "poststart", h.Poststart, st, inRuntime(h.spec.Bundle))
}

// Delete runs the poststop hooks of a container that has a bundle, the last of it that
// counts: mounts and namespaces went with its last process. Whatever these do, it is
// done after them; what failed of them is a [HookError].
func (l *Launcher) Delete(ctx context.Context, id string) error {
	bundle := filepath.Join(l.bundles, id)
	data, err := os.ReadFile(filepath.Join(bundle, ConfigFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var config struct {
		Hooks       specs.Hooks       `json:"hooks"`
		Annotations map[string]string `json:"annotations"`
	}
	if err == nil {
		err = json.Unmarshal(data, &config)
	}
	if err != nil {
		return fmt.Errorf("reading the bundle of container %s: %w", id, err)
	}
	st := state(id, specs.StateStopped, 0, bundle, config.Annotations)
	var errs []error
	for i := range config.Hooks.Poststop {
		errs = append(errs, runHook(ctx, "poststop", &config.Hooks.Poststop[i], st, inRuntime(bundle)))
	}
	if err := ctx.Err(); err != nil { // whoever comes after us runs them again
		return fmt.Errorf("running the poststop hooks of container %s: %w", id, err)
	}
	return errors.Join(append(errs, os.Remove(filepath.Join(bundle, ConfigFile)))...)
}

func state(id string, status specs.ContainerState, pid int, bundle string, annotations map[string]string) *specs.State {
	return &specs.State{Version: VersionOCI, ID: id, Status: status, Pid: pid, Bundle: bundle, Annotations: annotations}
}

// innerPID is the number of a process in its own process namespace.
func innerPID(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(data)) {
		if list, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if f := strings.Fields(list); len(f) > 0 {
				return strconv.Atoi(f[len(f)-1])
			}
		}
	}
	return 0, fmt.Errorf("/proc/%d/status does not tell its number in its own namespace", pid)
}
