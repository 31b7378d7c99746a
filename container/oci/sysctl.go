package oci

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// SysctlPath is the file of a kernel parameter below /proc/sys. Both spellings are in
// use: net.ipv4.conf.eth0/1.x and net/ipv4/conf/eth0.1/x.
func SysctlPath(name string) (string, error) {
	p := name
	if dot, slash := strings.IndexByte(name, '.'), strings.IndexByte(name, '/'); dot >= 0 && (slash < 0 || dot < slash) {
		p = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	if !filepath.IsLocal(p) || path.Clean(p) != p {
		return "", fmt.Errorf("sysctl %q is not a name", name)
	}
	return p, nil
}

// SetSysctls sets kernel parameters as the namespaces of the calling thread see them.
func SetSysctls(set map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		p, err := SysctlPath(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/"+p, []byte(set[name]), 0o644); err != nil {
			return fmt.Errorf("setting sysctl %s to %q: %w", name, set[name], err)
		}
	}
	return nil
}
