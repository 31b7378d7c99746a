// Package cdi reads Container Device Interface specifications: files in which
// vendors say what a container needs to use one of their devices. It follows
// version 1.0.0 of https://github.com/cncf-tags/container-device-interface.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"sigs.k8s.io/yaml"
)

// Dirs are searched for specifications, the later ones before the earlier.
var Dirs = []string{"/etc/cdi", "/var/run/cdi"}

// ErrUnknown is returned for a device that no specification has.
var ErrUnknown = errors.New("unknown CDI device")

// Edits are changes to a container.
type Edits struct {
	Env            []string     `json:"env,omitempty"`
	DeviceNodes    []DeviceNode `json:"deviceNodes,omitempty"`
	Mounts         []Mount      `json:"mounts,omitempty"`
	Hooks          []Hook       `json:"hooks,omitempty"`
	AdditionalGIDs []uint32     `json:"additionalGids,omitempty"`
}

// DeviceNode is a device file in the container.
type DeviceNode struct {
	Path        string `json:"path"`
	HostPath    string `json:"hostPath,omitempty"`    // empty: Path
	Permissions string `json:"permissions,omitempty"` // empty: rwm
}

// Mount is a bind mount.
type Mount struct {
	HostPath      string   `json:"hostPath"`
	ContainerPath string   `json:"containerPath"`
	Options       []string `json:"options,omitempty"`
}

// Hook is a program to be run at some moment of the container's life, which HookName
// names as the OCI runtime specification does.
type Hook struct {
	HookName string   `json:"hookName"`
	Path     string   `json:"path"`
	Args     []string `json:"args,omitempty"`
	Env      []string `json:"env,omitempty"`
	Timeout  *int     `json:"timeout,omitempty"` // in seconds
}

// spec is one file.
type spec struct {
	Version        string   `json:"cdiVersion"`
	Kind           string   `json:"kind"`
	Devices        []device `json:"devices"`
	ContainerEdits Edits    `json:"containerEdits"`
}

type device struct {
	Name           string `json:"name"`
	ContainerEdits Edits  `json:"containerEdits"`
}

// Resolve returns what the devices, named vendor/class=name, ask for together.
// Edits of a whole specification come once, before those of its devices. The
// specifications are read anew each time: plug-ins write them at any moment.
func Resolve(dirs, names []string) (Edits, error) {
	specs, err := load(dirs)
	if err != nil {
		return Edits{}, err
	}
	var all Edits
	seen := map[*spec]bool{}
	for _, name := range names {
		kind, dev, ok := strings.Cut(name, "=")
		if !ok || !strings.Contains(kind, "/") || dev == "" {
			return Edits{}, fmt.Errorf("CDI device %q: want vendor/class=name", name)
		}
		s, d, err := find(specs, kind, dev)
		if err != nil {
			return Edits{}, err
		}
		if !seen[s] {
			seen[s] = true
			all.add(&s.ContainerEdits)
		}
		all.add(&d.ContainerEdits)
	}
	return all, nil
}

func (e *Edits) add(o *Edits) {
	e.Env = append(e.Env, o.Env...)
	e.DeviceNodes = append(e.DeviceNodes, o.DeviceNodes...)
	e.Mounts = append(e.Mounts, o.Mounts...)
	e.Hooks = append(e.Hooks, o.Hooks...)
	e.AdditionalGIDs = append(e.AdditionalGIDs, o.AdditionalGIDs...)
}

// load reads the folders, those that count most first.
func load(dirs []string) ([][]*spec, error) {
	var levels [][]*spec
	for i := len(dirs) - 1; i >= 0; i-- {
		entries, err := os.ReadDir(dirs[i])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking for CDI specifications: %w", err)
		}
		sort.Slice(entries, func(a, b int) bool { return entries[a].Name() < entries[b].Name() })
		var level []*spec
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".json", ".yaml", ".yml":
			default:
				continue
			}
			file := filepath.Join(dirs[i], e.Name())
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("reading a CDI specification: %w", err)
			}
			s := &spec{}
			// One vendor's broken file must not take the devices of others away.
			if yaml.Unmarshal(data, s) == nil {
				level = append(level, s)
			}
		}
		levels = append(levels, level)
	}
	return levels, nil
}

func find(levels [][]*spec, kind, name string) (*spec, *device, error) {
	for _, level := range levels {
		var inSpec *spec
		var found *device
		for _, s := range level {
			if s.Kind != kind {
				continue
			}
			for i := range s.Devices {
				if s.Devices[i].Name != name {
					continue
				}
				if found != nil {
					return nil, nil, fmt.Errorf("CDI device %s=%s is in two specifications", kind, name)
				}
				inSpec, found = s, &s.Devices[i]
			}
		}
		if found != nil {
			return inSpec, found, nil
		}
	}
	return nil, nil, fmt.Errorf("%w %s=%s: is the device plug-in that writes its specification running?", ErrUnknown, kind, name)
}
