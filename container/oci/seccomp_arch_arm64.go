package oci

// seccompArches lists what a filter on this machine must tell apart: the
// machine's own calls first, then those of its 32-bit programs.
func seccompArches() []seccompArch {
	return []seccompArch{
		{audit: 0xc00000b7, numbers: syscallsArm64(), names: []string{"SCMP_ARCH_AARCH64", "arm64"}},
		{audit: 0x40000028, numbers: syscallsArm(), names: []string{"SCMP_ARCH_ARM", "arm"}},
	}
}
