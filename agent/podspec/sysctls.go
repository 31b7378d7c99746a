package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// safeSysctls are those that every pod may set.
// https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/#safe-and-unsafe-sysctls
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start",
	"net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// sysctlSpace is the namespace to which a sysctl, or a pattern of them, belongs: net or
// ipc; empty: the machine's.
func sysctlSpace(name string) string {
	for prefix, space := range map[string]string{"net.": "net", "kernel.shm": "ipc", "kernel.msg": "ipc", "kernel.sem": "ipc", "fs.mqueue.": "ipc"} {
		if strings.HasPrefix(name, prefix) {
			return space
		}
	}
	return ""
}

// CheckSysctlPatterns finds what cannot be meant in the unsafe sysctls that a node
// allows: names, or beginnings of names with a star.
func CheckSysctlPatterns(patterns []string) error {
	for _, p := range patterns {
		name := strings.TrimSuffix(p, "*")
		switch {
		case name == "" || strings.Contains(name, "*"):
			return fmt.Errorf("sysctl %q: write a name such as net.core.somaxconn, or the beginning of some such as net.*", p)
		case sysctlSpace(strings.ReplaceAll(name, "/", ".")) == "":
			return fmt.Errorf("sysctl %q is not of a namespace that pods have of their own; those of net.*, kernel.shm*, kernel.msg*, kernel.sem* and fs.mqueue.* are", p)
		}
	}
	return nil
}

// ForbiddenSysctl is why a pod may not have the sysctls that it asks for, in a kubelet's
// words; nil: it may. unsafe are patterns of those that the node allows besides the safe
// ones.
func ForbiddenSysctl(pod *corev1.Pod, unsafe []string) error {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := s.Name
		if dot, slash := strings.IndexByte(name, '.'), strings.IndexByte(name, '/'); slash >= 0 && (dot < 0 || slash < dot) {
			name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
		}
		if !sysctlListed(name, safeSysctls) && !sysctlListed(name, unsafe) {
			return fmt.Errorf("forbidden sysctl: %q not allowlisted", name)
		}
		switch space := sysctlSpace(name); {
		case space == "net" && pod.Spec.HostNetwork, space == "ipc" && pod.Spec.HostIPC:
			return fmt.Errorf("forbidden sysctl: %q not allowed with host %s enabled", name, space)
		}
	}
	return nil
}

func sysctlListed(name string, patterns []string) bool {
	for _, p := range patterns {
		if begin, ok := strings.CutSuffix(p, "*"); name == p || ok && strings.HasPrefix(name, begin) {
			return true
		}
	}
	return false
}
