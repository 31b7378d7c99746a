package oci

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// StartError says why a program could not be started, in the words that
// Kubernetes' users know from their pods' status.
type StartError struct {
	Program string
	Stage   string // what was being done; empty when it was the execution itself
	Errno   unix.Errno
	lookup  bool
}

func (e *StartError) Error() string {
	switch {
	case e.Stage != "":
		return fmt.Sprintf("starting %q: %s: %v", e.Program, e.Stage, e.Errno)
	case e.lookup && e.Errno == unix.ENOENT:
		return fmt.Sprintf("exec: %q: executable file not found in $PATH", e.Program)
	case e.Errno == unix.ENOENT:
		return fmt.Sprintf("exec: %q: stat %s: no such file or directory", e.Program, e.Program)
	default:
		return fmt.Sprintf("exec: %q: %v", e.Program, e.Errno)
	}
}

func (e *StartError) Unwrap() error { return e.Errno }

// ExitCode is what a shell would report: 127 not found, 126 not executable,
// 128 when the container itself could not be made.
func (e *StartError) ExitCode() int {
	switch {
	case e.Stage != "":
		return 128
	case errors.Is(e.Errno, unix.ENOENT):
		return 127
	default:
		return 126
	}
}

// stages names those of init.c, in its order.
var stages = [...]string{
	1: "reading its configuration", "entering the container's namespaces", "making a cgroup namespace",
	"entering the root file system", "mounting /proc", "masking paths", "making paths read-only",
	"taking the terminal", "loading the seccomp filter", "setting capabilities", "setting supplemental groups",
	"setting the user", "entering the working directory", "", "", "setting resource limits",
	"entering the user namespace",
}

const (
	stageReplaced = 0 // no failure: another process goes on
	stageLookup   = 14
	stageExec     = 15
	stagePause    = 18 // no failure: the process waits for hooks to be run
)

func startError(program string, stage uint32, errno int32) *StartError {
	e := &StartError{Program: program, Errno: unix.Errno(errno), lookup: stage == stageLookup}
	if stage != stageLookup && stage != stageExec {
		e.Stage = "preparing the process"
		if int(stage) < len(stages) && stages[stage] != "" {
			e.Stage = stages[stage]
		}
	}
	return e
}
