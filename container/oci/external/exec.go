package external

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/oci"
	"knarr.dev/knarr/container/oci/bundle"
)

// Exec runs a further process. The program stays in the foreground meanwhile and
// passes on what is read and written.
func (r *Runtime) Exec(ctx context.Context, spec *oci.ExecSpec, stdio oci.Stdio, cg oci.Cgroup) (oci.Command, error) {
	dir, err := os.MkdirTemp(r.scratch, "")
	if err != nil {
		return nil, fmt.Errorf("making a folder for a command: %w", err)
	}
	c, err := r.exec(ctx, dir, spec, stdio, cg)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

func (r *Runtime) exec(ctx context.Context, dir string, spec *oci.ExecSpec, stdio oci.Stdio, cg oci.Cgroup) (*command, error) {
	process, err := json.Marshal(bundle.Process(r.host, &spec.Process, spec.Args, spec.Env, spec.Cwd, spec.TTY))
	if err != nil {
		return nil, err
	}
	c := &command{r: r, ctx: context.WithoutCancel(ctx), id: spec.ID, dir: dir}
	if err := os.WriteFile(filepath.Join(dir, "process.json"), process, 0o600); err != nil {
		return nil, err
	}
	args := []string{"exec", "--process", filepath.Join(dir, "process.json")}
	if r.kind.sandboxed {
		args = append(args, "--internal-pid-file", c.pidFile())
	} else {
		args = append(args, "--pid-file", c.pidFile())
	}
	var master, slave *os.File
	if spec.TTY {
		if master, slave, err = openTerminal(); err != nil {
			return nil, err
		}
		defer slave.Close()
		stdio = oci.Stdio{In: slave, Out: slave, Err: slave}
	}
	cmd := r.command(c.ctx, c.log(), append(args, spec.ID)...)
	cmd.SysProcAttr.Pdeathsig = 0 // it outlives the thread; a broken pipe ends it when we are killed
	if spec.TTY {
		// The program learns of a new size by a signal of its controlling terminal.
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	}
	r.setStdio(cmd, stdio)
	err = oci.OnThread(func() error {
		leave, err := r.place(cmd, cg)
		if err != nil {
			return err
		}
		if err = r.hide(); err == nil {
			err = cmd.Start()
		}
		return errors.Join(err, leave())
	})
	if err == nil {
		// Nobody else waits for it, so it cannot have been collected.
		c.Child, err = oci.Open(cmd.Process.Pid)
	}
	if err != nil {
		if master != nil {
			master.Close()
		}
		return nil, fmt.Errorf("%s exec: %w", r.name, err)
	}
	_ = cmd.Process.Release()
	c.Console = master
	return c, nil
}

// command is a process in a container. The Child is the program that stands for it
// outside and ends with its exit code.
type command struct {
	*oci.Child
	r       *Runtime
	ctx     context.Context // of calls to signal it, which come when its own has ended
	id, dir string
}

func (c *command) pidFile() string { return filepath.Join(c.dir, "pid") }
func (c *command) log() string     { return filepath.Join(c.dir, "log") }

// Wait returns the command's exit code, or why the program could not start it.
func (c *command) Wait(ctx context.Context) (int, error) {
	code, err := c.Child.Wait(ctx)
	if err != nil || code == 0 {
		return code, err
	}
	if _, started := os.Stat(c.pidFile()); started == nil {
		return code, nil
	}
	return code, c.r.explain("exec", c.log(), fmt.Errorf("exit code %d", code))
}

// Signal goes to the process inside: the program cannot pass a SIGKILL on.
func (c *command) Signal(sig unix.Signal) error {
	pid, err := readPID(c.pidFile())
	if err != nil {
		return c.Child.Signal(sig) // it has not got so far
	}
	if c.r.kind.sandboxed {
		return c.r.run(c.ctx, c.log(), "kill", "--pid", strconv.Itoa(pid), c.id, strconv.Itoa(int(sig)))
	}
	if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signalling process %d: %w", pid, err)
	}
	return nil
}

func (c *command) Close() error { return errors.Join(c.Child.Close(), os.RemoveAll(c.dir)) }
