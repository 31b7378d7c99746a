package cgroup

import (
	"path/filepath"

	"knarr.dev/knarr/kit/pressure"
)

// Pressure reads the group's pressure of the resource cpu, memory or io. False where
// the kernel does not tell.
func (g Group) Pressure(resource string) (pressure.Pressure, bool) {
	if g.v2() == "" {
		return pressure.Pressure{}, false
	}
	return pressure.Read(filepath.Join(g.v2(), resource+".pressure"))
}
