package sandbox

import "testing"

func TestOnlyThePodsOwnSysctls(t *testing.T) {
	for name, want := range map[string]struct{ own, network, ipc bool }{ // may a pod, one on the host's network, one with the host's IPC
		"net.core.somaxconn":                {true, false, true},
		"net/ipv4/conf/eth0.1/forwarding":   {true, false, true},
		"net.ipv4.conf.eth0/1.forwarding":   {true, false, true},
		"kernel.domainname":                 {true, false, true},
		"kernel.shm_rmid_forced":            {true, true, false},
		"kernel.msgmax":                     {true, true, false},
		"kernel.sem":                        {true, true, false},
		"fs.mqueue.msg_max":                 {true, true, false},
		"kernel.panic":                      {},
		"kernel/core_pattern":               {},
		"vm.overcommit_memory":              {},
		"fs.file-max":                       {},
		"kernel.hostname":                   {},
		"net/../kernel/panic":               {},
		"net.//../kernel/panic":             {},
		"/net/core/somaxconn":               {},
		"../../proc/sys/net/core/somaxconn": {},
		"":                                  {},
	} {
		set := map[string]string{name: "1"}
		for o, ok := range map[*Options]bool{{Sysctls: set}: want.own, {Sysctls: set, HostNetwork: true}: want.network, {Sysctls: set, HostIPC: true}: want.ipc} {
			if err := o.checkSysctls(); (err == nil) != ok {
				t.Errorf("%s, network %v, IPC %v: %v", name, o.HostNetwork, o.HostIPC, err)
			}
		}
	}
}
