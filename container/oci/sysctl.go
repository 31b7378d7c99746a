package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// writeSysctls sets kernel parameters as the calling thread's namespaces see them.
func writeSysctls(set map[string]string) error {
	names := make([]string, 0, len(set))
	for n := range set {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, name := range names {
		// Both spellings are in use: net.ipv4.conf.eth0/1.x and net/ipv4/conf/eth0.1/x.
		p := name
		if strings.IndexByte(name, '.') >= 0 && (strings.IndexByte(name, '/') < 0 || strings.IndexByte(name, '.') < strings.IndexByte(name, '/')) {
			p = strings.NewReplacer(".", "/", "/", ".").Replace(name)
		}
		if !filepath.IsLocal(p) {
			return fmt.Errorf("sysctl %q is not a name", name)
		}
		if err := os.WriteFile("/proc/sys/"+p, []byte(set[name]), 0o644); err != nil {
			return fmt.Errorf("setting sysctl %s to %q: %w", name, set[name], err)
		}
	}
	return nil
}

// SetSysctls sets kernel parameters in the namespaces of the calling thread.
func SetSysctls(set map[string]string) error { return writeSysctls(set) }
