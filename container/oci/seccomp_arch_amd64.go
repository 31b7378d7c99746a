package oci

// seccompArches lists what a filter on this machine must tell apart: the
// machine's own calls first, then those of its 32-bit programs.
func seccompArches() []seccompArch {
	return []seccompArch{
		{audit: 0xc000003e, numbers: syscallsAmd64(), names: []string{"SCMP_ARCH_X86_64", "amd64"}, x32: true},
		{audit: 0x40000003, numbers: syscalls386(), names: []string{"SCMP_ARCH_X86", "x86"}},
	}
}
