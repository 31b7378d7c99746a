package external

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
)

// Config says where a program is and how it is called.
type Config struct {
	// Path of the program; a name alone is looked up in PATH.
	Path string `json:"path,omitempty"`
	// Kind is whose ways the program has: runc, crun or runsc. Empty: the name of its
	// file, and for any other name runc's.
	Kind string `json:"kind,omitempty"`
	// Root is where the program keeps its state. It must not outlive a boot of the
	// machine. Empty: a folder beside the runtime's other volatile files.
	Root string `json:"root,omitempty"`
	// Options are put before the program's verb.
	Options []string `json:"options,omitempty"`
}

// Defaults are the handlers that exist wherever the program of that name is in PATH.
func Defaults() map[string]Config {
	return map[string]Config{"runc": {Path: "runc"}, "crun": {Path: "crun"}, "runsc": {Path: "runsc"}}
}

// Check tells what is wrong with c.
func (c Config) Check() error {
	if c.Path == "" {
		return fmt.Errorf("path: say which program to run")
	}
	if _, ok := kinds[c.Kind]; c.Kind != "" && !ok {
		return fmt.Errorf("kind: %q is not runc, crun or runsc", c.Kind)
	}
	if c.Root != "" && !filepath.IsAbs(c.Root) {
		return fmt.Errorf("root: %q must be an absolute path", c.Root)
	}
	return nil
}

// Installed reports whether the program is there.
func (c Config) Installed() bool { _, err := exec.LookPath(c.Path); return err == nil }

// kind is where the programs differ.
type kind struct {
	options []string
	// placed: it is started in the container's control group instead of being told
	// its path, for its own handling of groups fails on some layouts.
	placed bool
	// v1Only: it refuses hosts with both versions of control groups, unless it is kept
	// from seeing version 2.
	v1Only bool
	// sandboxed: containers have a kernel of their own. Host process numbers mean
	// nothing in them, and its processes are seen by nobody outside.
	sandboxed bool
}

var kinds = map[string]kind{
	"runc": {},
	"crun": {options: []string{"--cgroup-manager=disabled"}, placed: true, v1Only: true},
	"runsc": {
		// The pod's network namespace is shared by its containers, each of which has a
		// kernel of its own: only the host's network stack can be common to them.
		options: []string{"--network=host", "--net-raw", "--ignore-cgroups", "--overlay2=none", "--platform=systrap"},
		placed:  true, sandboxed: true,
	},
}

func (c Config) kind() kind {
	if k, ok := kinds[c.Kind]; ok {
		return k
	}
	return kinds[filepath.Base(c.Path)] // of another name: the zero kind, runc's
}

// globals are the options before the verb.
func (c Config) globals() []string { return slices.Concat(c.kind().options, c.Options) }
