package podspec

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestForbiddenSysctl(t *testing.T) {
	for name, want := range map[string]struct{ plain, network, ipc string }{
		"kernel.shm_rmid_forced":  {"", "", `forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host ipc enabled`},
		"net.ipv4.tcp_syncookies": {"", `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host net enabled`, ""},
		"net/ipv4/tcp_syncookies": {"", `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host net enabled`, ""},
		"net.core.somaxconn":      {"", `forbidden sysctl: "net.core.somaxconn" not allowed with host net enabled`, ""},
		"kernel.msgmax":           {`forbidden sysctl: "kernel.msgmax" not allowlisted`, `forbidden sysctl: "kernel.msgmax" not allowlisted`, `forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"vm.swappiness":           {`forbidden sysctl: "vm.swappiness" not allowlisted`, `forbidden sysctl: "vm.swappiness" not allowlisted`, `forbidden sysctl: "vm.swappiness" not allowlisted`},
	} {
		for change, want := range map[string]string{"": want.plain, "network": want.network, "ipc": want.ipc} {
			p := &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: change == "network", HostIPC: change == "ipc",
				SecurityContext: &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: name, Value: "1"}}}}}
			got := ""
			if err := ForbiddenSysctl(p, []string{"net.core.*"}); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("%s, host %s: %q, want %q", name, change, got, want)
			}
		}
	}
	if err := ForbiddenSysctl(&corev1.Pod{}, nil); err != nil {
		t.Error(err)
	}
}
