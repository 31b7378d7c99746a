package container

import (
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/container/cdi"
)

// addDevices gives the container what the CDI devices that it names need.
func addDevices(c *runtimeapi.ContainerConfig, dirs []string) error {
	if len(c.GetCDIDevices()) == 0 {
		return nil
	}
	var names []string
	for _, d := range c.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	e, err := cdi.Resolve(dirs, names)
	if err != nil {
		return fmt.Errorf("%w: %w", errInvalid, err)
	}
	if len(e.Hooks) > 0 {
		return fmt.Errorf("%w: the CDI devices %s want the program %s to be run as a hook: this runtime runs no hooks", errInvalid, strings.Join(names, ", "), e.Hooks[0].Path)
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
	return nil
}
