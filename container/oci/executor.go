package oci

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// Executor runs the processes of containers. [Launcher] is knarr's own; package
// external drives programs that speak the OCI runtime specification.
type Executor interface {
	// Start runs a container's first process. With spec.TTY the process gets a new
	// terminal instead of stdio, and the Child's Console is its master.
	Start(ctx context.Context, spec *Spec, stdio Stdio, cg Cgroup) (*Child, error)
	// Exec runs a further process in a container, likewise.
	Exec(ctx context.Context, spec *ExecSpec, stdio Stdio, cg Cgroup) (Command, error)
	// Signal sends sig to the first process of container id, which child identifies.
	// A process that is gone already is no error.
	Signal(ctx context.Context, id string, child *Child, sig unix.Signal) error
	// Delete removes what Start left of container id, whose processes are dead, and runs
	// its poststop hooks, once. An unknown container is no error.
	Delete(ctx context.Context, id string) error
}

// Command is a process that was executed in a running container.
type Command interface {
	// Wait blocks until the command has ended and returns its exit code.
	Wait(ctx context.Context) (int, error)
	// Signal sends sig to the command.
	Signal(sig unix.Signal) error
	// Terminal is the master of the command's terminal, nil without one.
	Terminal() *os.File
	// Close gives up the handles.
	Close() error
}

// Signal sends sig to a container's first process.
func (l *Launcher) Signal(_ context.Context, _ string, child *Child, sig unix.Signal) error {
	return child.Signal(sig)
}

// Permitted is the part of caps that this process may hand on.
func (l *Launcher) Permitted(caps Caps) Caps {
	return Caps{
		Bounding: caps.Bounding & l.caps, Effective: caps.Effective & l.caps,
		Inheritable: caps.Inheritable & l.caps, Ambient: caps.Ambient & l.caps,
	}
}

// OpenFiles is the limit of open files that containers are given.
func (l *Launcher) OpenFiles() uint64 { return min(l.nofile, 1<<20) }
