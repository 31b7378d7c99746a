package sandbox

import (
	"fmt"
	"strings"

	"knarr.dev/knarr/container/oci"
)

// checkSysctls refuses kernel parameters that are not of the pod's own namespaces: they
// would be the machine's.
func (o *Options) checkSysctls() error {
	for name := range o.Sysctls {
		p, err := oci.SysctlPath(name)
		if err != nil {
			return err
		}
		var shared bool // the namespace is the machine's
		switch {
		case strings.HasPrefix(p, "net/"), p == "kernel/domainname":
			shared = o.HostNetwork
		case strings.HasPrefix(p, "kernel/shm"), strings.HasPrefix(p, "kernel/msg"), strings.HasPrefix(p, "kernel/sem"), strings.HasPrefix(p, "fs/mqueue/"):
			shared = o.HostIPC
		default:
			return fmt.Errorf("sysctl %q is not in a separate kernel namespace: no pod may set it", name)
		}
		if shared {
			return fmt.Errorf("sysctl %q is the machine's, because the pod shares the machine's namespace: take hostNetwork or hostIPC away, or the sysctl", name)
		}
	}
	return nil
}
