package oci

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// capNames are in the order of their numbers, from linux/capability.h.
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// AllCaps is every capability there is; what this process lacks is cut off at start.
const AllCaps = uint64(1)<<len(capNames) - 1

// DefaultCaps are those of a container that asks for nothing, as in Docker and containerd.
var DefaultCaps = mustCaps("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
	"SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE")

func mustCaps(names ...string) uint64 {
	set, err := ParseCaps(names)
	if err != nil {
		panic(err)
	}
	return set
}

// ParseCaps turns names, with or without CAP_, in any case, into a mask. ALL is every one.
func ParseCaps(names []string) (uint64, error) {
	var set uint64
next:
	for _, name := range names {
		n := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		if n == "ALL" {
			set |= AllCaps
			continue
		}
		for i, c := range capNames {
			if c == n {
				set |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("unknown capability %q", name)
	}
	return set, nil
}

// CapNames are the names, with CAP_, of the capabilities in set.
func CapNames(set uint64) []string {
	names := []string{}
	for i, n := range capNames {
		if set&(1<<i) != 0 {
			names = append(names, "CAP_"+n)
		}
	}
	return names
}

// HasCap reports whether set holds the capability called name (without CAP_).
func HasCap(set uint64, name string) bool {
	want, err := ParseCaps([]string{name})
	return err == nil && set&want == want
}

// boundingSet reads what this process may hand on to its children.
func boundingSet() (uint64, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("reading this process's capabilities: %w", err)
	}
	set := AllCaps
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		if key == "CapBnd" || key == "CapPrm" {
			v, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("reading this process's capabilities: %w", err)
			}
			set &= v
		}
	}
	return set, nil
}
