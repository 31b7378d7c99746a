package external

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
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/oci"
)

// Runtime is one program. It is safe for concurrent use.
type Runtime struct {
	name string
	conf Config
	kind kind
	// bundles holds a folder for each container, by its ID, while it exists.
	bundles string
	// scratch holds a folder for each command while it runs; its path is short, as
	// those of sockets must be.
	scratch string
	host    *oci.Launcher

	mu       sync.Mutex
	features Features
	asked    time.Time // of the file that was asked
}

// New makes the runtime called name. state is a volatile folder of the caller's with
// a sub-folder x, bundles one whose sub-folders, named as the containers, the caller removes with
// these. host says what this machine permits.
func New(name string, c Config, state, bundles string, host *oci.Launcher) *Runtime {
	if c.Root == "" {
		c.Root = filepath.Join(state, name)
	}
	return &Runtime{name: name, conf: c, kind: c.kind(), bundles: bundles, scratch: filepath.Join(state, "x"), host: host}
}

// Start makes the container's bundle, creates and starts it.
func (r *Runtime) Start(ctx context.Context, spec *oci.Spec, stdio oci.Stdio, cg oci.Cgroup) (*oci.Child, error) {
	if err := r.check(ctx, spec); err != nil {
		return nil, err
	}
	child, err := r.create(ctx, spec, stdio, cg)
	if err != nil {
		return nil, errors.Join(err, r.Delete(context.WithoutCancel(ctx), spec.ID))
	}
	// Best effort: without CAP_SYS_RESOURCE the score can only be raised.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", child.PID), []byte(strconv.Itoa(spec.OOMScoreAdj)), 0)
	if err := r.run(ctx, filepath.Join(r.bundles, spec.ID, "start.log"), "start", spec.ID); err != nil {
		_ = child.Signal(unix.SIGKILL)
		child.Close()
		return nil, errors.Join(err, r.Delete(context.WithoutCancel(ctx), spec.ID))
	}
	return child, nil
}

// Users: the program can give containers users of their own.
func (r *Runtime) Users() bool { return !r.kind.sandboxed }

// check refuses what the program would not do as it was asked.
func (r *Runtime) check(ctx context.Context, s *oci.Spec) error {
	switch {
	case len(s.Args) == 0:
		return errors.New("no command given: set one in the pod or in the image")
	case s.Users != nil && !r.Users():
		return fmt.Errorf("runtime handler %q: it has no user namespaces: use the default one", r.name)
	case r.kind.sandboxed && s.Namespaces.PID != oci.Private:
		return fmt.Errorf("runtime handler %q: its containers cannot share processes, neither with each other nor with the host", r.name)
	}
	for _, m := range s.Mounts {
		if m.RecursiveReadOnly && !r.Features(ctx).RecursiveReadOnly {
			return fmt.Errorf("runtime handler %q: it cannot make %s read-only with all that is mounted on it: set recursiveReadOnly to IfPossible", r.name, m.Target)
		}
	}
	return nil
}

func (r *Runtime) create(ctx context.Context, spec *oci.Spec, stdio oci.Stdio, cg oci.Cgroup) (child *oci.Child, err error) {
	bundle := filepath.Join(r.bundles, spec.ID)
	for _, d := range []string{filepath.Join(bundle, "rootfs"), r.conf.Root} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("making a bundle: %w", err)
		}
	}
	args := []string{"create", "--bundle", bundle, "--pid-file", filepath.Join(bundle, "pid")}
	var console *console
	if spec.TTY {
		if console, err = listenConsole(r.scratch); err != nil {
			return nil, err
		}
		defer console.close()
		args = append(args, "--console-socket", console.path)
		stdio = oci.Stdio{}
	}
	logFile := filepath.Join(bundle, "create.log")
	cmd := r.command(ctx, logFile, append(args, spec.ID)...)
	r.setStdio(cmd, stdio)
	err = oci.OnThread(func() error {
		leave, err := r.place(cmd, cg)
		if err != nil {
			return err
		}
		if err = r.mount(spec, bundle, cg.Path()); err == nil {
			err = cmd.Start()
		}
		if err := errors.Join(err, leave()); err != nil {
			return err
		}
		return cmd.Wait() // on this thread, whose end would kill it
	})
	if err != nil {
		return nil, r.explain("create", logFile, err)
	}
	pid, err := readPID(filepath.Join(bundle, "pid"))
	if err != nil {
		return nil, err
	}
	if child, err = oci.Open(pid); err != nil { // it waits to be started
		return nil, err
	}
	_ = r.host.Follow(child) // else its exit code is unknown, and that is no reason not to run it
	if console != nil {
		if child.Console, err = console.receive(ctx); err != nil {
			child.Close()
			return nil, err
		}
	}
	return child, nil
}

// command is a call of the program. It dies with the thread that starts it, so with
// this process too.
func (r *Runtime) command(ctx context.Context, log string, args ...string) *exec.Cmd {
	all := append(r.conf.globals(), "--root", r.conf.Root, "--log", log, "--log-format", "json")
	cmd := exec.CommandContext(ctx, r.conf.Path, append(all, args...)...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// place sees to it that cmd, when it is started from the calling thread, one of
// oci.OnThread's, begins in cg, if the program wants that. leave ends it.
func (r *Runtime) place(cmd *exec.Cmd, cg oci.Cgroup) (leave func() error, err error) {
	if !r.kind.placed {
		return func() error { return nil }, nil
	}
	fd, release, err := cg.Open()
	if err != nil {
		return nil, err
	}
	if fd >= 0 {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	}
	back, err := cg.JoinThread()
	if err != nil {
		release()
		return nil, err
	}
	return func() error { release(); return back() }, nil
}

// run calls the program and waits for it.
func (r *Runtime) run(ctx context.Context, log string, args ...string) error {
	err := oci.OnThread(func() error {
		if err := r.hide(); err != nil {
			return err
		}
		cmd := r.command(ctx, log, args...)
		if err := cmd.Start(); err != nil {
			return err
		}
		return cmd.Wait()
	})
	return r.explain(args[0], log, err)
}

// explain says why a call failed, in the program's own words where it left some.
func (r *Runtime) explain(verb, log string, err error) error {
	if err == nil {
		return nil
	}
	if msg := lastError(log); msg != "" {
		return fmt.Errorf("%s %s: %s", r.name, verb, msg)
	}
	return fmt.Errorf("%s %s: %w", r.name, verb, err)
}

// lastError is the last message of level error in a log of JSON objects.
func lastError(log string) string {
	data, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(data)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = strings.TrimSpace(entry.Msg)
		}
	}
	return last
}

// Signal sends sig to a container's first process.
func (r *Runtime) Signal(ctx context.Context, id string, child *oci.Child, sig unix.Signal) error {
	if !r.kind.sandboxed {
		return child.Signal(sig)
	}
	err := r.run(ctx, filepath.Join(r.bundles, id, "kill.log"), "kill", id, strconv.Itoa(int(sig)))
	if err != nil && !child.Ended() {
		return err
	}
	return nil
}

// Delete lets the program forget a container.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if _, err := os.Stat(filepath.Join(r.conf.Root, id)); errors.Is(err, os.ErrNotExist) && !r.kind.sandboxed {
		return nil
	}
	if !r.conf.Installed() { // its container's processes are dead, and files are all that it left
		return os.RemoveAll(filepath.Join(r.conf.Root, id))
	}
	log := filepath.Join(r.bundles, id, "delete.log")
	err := r.run(ctx, log, "delete", id)
	if err != nil { // one that was only half made wants to be forced; that is slow with some
		err = r.run(ctx, log, "delete", "--force", id)
	}
	if err != nil && !strings.Contains(err.Error(), "does not exist") {
		return err
	}
	return r.sweep(id)
}

// sweep removes the files of a container that the program was killed while making, and
// does not know.
func (r *Runtime) sweep(id string) error {
	left, err := filepath.Glob(filepath.Join(r.conf.Root, "*"+id+"*"))
	for _, f := range left {
		err = errors.Join(err, os.RemoveAll(f))
	}
	return err
}

func readPID(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("reading the process number of a container: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("reading the process number of a container: %q in %s", data, file)
	}
	return pid, nil
}

// setStdio gives cmd its descriptors. Those that are missing are not the host's null
// device, which crun gives to the container's user.
func (r *Runtime) setStdio(cmd *exec.Cmd, s oci.Stdio) {
	or := func(f *os.File) *os.File {
		if f == nil {
			return r.host.Null()
		}
		return f
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = or(s.In), or(s.Out), or(s.Err)
}
