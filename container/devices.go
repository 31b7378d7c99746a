package container

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cdi"
)

// hookTimeout, in seconds, is that of hooks that have none of their own. The
// specification would let them keep a container from ever starting or ending.
const hookTimeout = 60

// addDevices gives the container what the CDI devices that it names need, and returns
// the hooks that they want to be run; nil: none.
func addDevices(c *runtimeapi.ContainerConfig, dirs []string) (*specs.Hooks, error) {
	if len(c.GetCDIDevices()) == 0 {
		return nil, nil
	}
	var names []string
	for _, d := range c.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	e, err := cdi.Resolve(dirs, names)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errInvalid, err)
	}
	hooks, err := ociHooks(e.Hooks)
	if err != nil {
		return nil, fmt.Errorf("%w: CDI devices %s: %w", errInvalid, strings.Join(names, ", "), err)
	}
	for _, kv := range e.Env {
		key, value, _ := strings.Cut(kv, "=")
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
	}
	for _, d := range e.DeviceNodes {
		c.Devices = append(c.Devices, &runtimeapi.Device{
			ContainerPath: d.Path, HostPath: or(d.HostPath, d.Path), Permissions: or(d.Permissions, "rwm"),
		})
	}
	for _, m := range e.Mounts {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{
			HostPath: m.HostPath, ContainerPath: m.ContainerPath, Readonly: slices.Contains(m.Options, "ro"),
		})
	}
	if len(e.AdditionalGIDs) > 0 {
		if c.Linux == nil {
			c.Linux = &runtimeapi.LinuxContainerConfig{}
		}
		if c.Linux.SecurityContext == nil {
			c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{}
		}
		for _, g := range e.AdditionalGIDs {
			c.Linux.SecurityContext.SupplementalGroups = append(c.Linux.SecurityContext.SupplementalGroups, int64(g))
		}
	}
	return hooks, nil
}

// ociHooks sorts hooks by their moments.
func ociHooks(list []cdi.Hook) (*specs.Hooks, error) {
	if len(list) == 0 {
		return nil, nil
	}
	all := &specs.Hooks{}
	at := map[string]*[]specs.Hook{
		"prestart": &all.Prestart, "createRuntime": &all.CreateRuntime, "createContainer": &all.CreateContainer,
		"startContainer": &all.StartContainer, "poststart": &all.Poststart, "poststop": &all.Poststop,
	}
	for _, h := range list {
		to := at[h.HookName]
		switch {
		case to == nil:
			return nil, fmt.Errorf("hook %s: %q is no moment of a container's life", h.Path, h.HookName)
		case !filepath.IsAbs(h.Path):
			return nil, fmt.Errorf("%s hook %q: its path must be absolute", h.HookName, h.Path)
		case h.Timeout != nil && *h.Timeout <= 0:
			return nil, fmt.Errorf("%s hook %s: its timeout of %d s must be positive", h.HookName, h.Path, *h.Timeout)
		}
		timeout := hookTimeout
		if h.Timeout != nil {
			timeout = *h.Timeout
		}
		*to = append(*to, specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: &timeout})
	}
	return all, nil
}
