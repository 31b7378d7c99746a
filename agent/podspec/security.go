package podspec

import (
	"fmt"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Paths beneath /proc and /sys that unprivileged containers must not see, or not
// change, under the default proc mount.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Effective merges the pod's and the container's security context: a field of
// the container wins.
func Effective(pod *corev1.Pod, c *corev1.Container) corev1.SecurityContext {
	var s corev1.SecurityContext
	if c.SecurityContext != nil {
		s = *c.SecurityContext
	}
	p := pod.Spec.SecurityContext
	if p == nil {
		return s
	}
	if s.RunAsUser == nil {
		s.RunAsUser = p.RunAsUser
	}
	if s.RunAsGroup == nil {
		s.RunAsGroup = p.RunAsGroup
	}
	if s.RunAsNonRoot == nil {
		s.RunAsNonRoot = p.RunAsNonRoot
	}
	if s.SELinuxOptions == nil {
		s.SELinuxOptions = p.SELinuxOptions
	}
	if s.SeccompProfile == nil {
		s.SeccompProfile = p.SeccompProfile
	}
	if s.AppArmorProfile == nil {
		s.AppArmorProfile = p.AppArmorProfile
	}
	return s
}

// VerifyNonRoot refuses a container that must not run as root and would. uid is
// the numeric user of the image (nil when unknown), username its name.
func VerifyNonRoot(pod *corev1.Pod, c *corev1.Container, uid *int64, username string) error {
	s := Effective(pod, c)
	if s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", FullName(pod), c.Name)
	switch {
	case s.RunAsUser != nil && *s.RunAsUser == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
	case s.RunAsUser != nil:
		return nil
	case uid != nil && *uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	case uid == nil && username != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", username, where)
	}
	return nil
}

// ContainerSecurity translates a container's effective security context. uid
// and username are the image's user; groups are added to the process. Without a seccomp
// profile it has the runtime's own if seccompDefault, else none.
func ContainerSecurity(pod *corev1.Pod, c *corev1.Container, uid *int64, username string, target string, seccompDefault bool) *runtimeapi.LinuxContainerSecurityContext {
	s := Effective(pod, c)
	if s.SeccompProfile == nil && seccompDefault {
		s.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
	out := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:       s.Privileged != nil && *s.Privileged,
		ReadonlyRootfs:   s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem,
		NamespaceOptions: NamespaceOptions(pod),
		Seccomp:          seccomp(s.SeccompProfile),
		Apparmor:         apparmor(s.AppArmorProfile),
		SelinuxOptions:   selinux(s.SELinuxOptions),
		NoNewPrivs:       noNewPrivs(&s),
	}
	if target != "" {
		out.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		out.NamespaceOptions.TargetId = target
	}
	switch {
	case s.RunAsUser != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *s.RunAsUser}
	case uid != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *uid}
	default:
		out.RunAsUsername = username
	}
	if s.RunAsGroup != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *s.RunAsGroup}
	}
	out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(pod)
	if cap := s.Capabilities; cap != nil {
		out.Capabilities = &runtimeapi.Capability{}
		for _, a := range cap.Add {
			out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(a))
		}
		for _, d := range cap.Drop {
			out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(d))
		}
	}
	if !out.Privileged && (s.ProcMount == nil || *s.ProcMount == corev1.DefaultProcMount) {
		out.MaskedPaths, out.ReadonlyPaths = slices.Clone(maskedPaths), slices.Clone(readonlyPaths)
	}
	return out
}

func noNewPrivs(s *corev1.SecurityContext) bool {
	return s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
}

func groups(pod *corev1.Pod) ([]int64, runtimeapi.SupplementalGroupsPolicy) {
	p := pod.Spec.SecurityContext
	if p == nil {
		return nil, runtimeapi.SupplementalGroupsPolicy_Merge
	}
	out := slices.Clone(p.SupplementalGroups)
	if p.FSGroup != nil {
		out = append(out, *p.FSGroup)
	}
	policy := runtimeapi.SupplementalGroupsPolicy_Merge
	if p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		policy = runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return out, policy
}

// NamespaceOptions tells which namespaces the pod shares with the node.
func NamespaceOptions(pod *corev1.Pod) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_POD,
		Pid:     runtimeapi.NamespaceMode_CONTAINER,
		Ipc:     runtimeapi.NamespaceMode_POD,
	}
	if pod.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

// seccomp without a profile is unconfined, as Kubernetes defines it.
func seccomp(p *corev1.SeccompProfile) *runtimeapi.SecurityProfile {
	if p == nil {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	}
	switch p.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case corev1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile != nil {
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost,
				LocalhostRef: filepath.Join(SeccompRoot, *p.LocalhostProfile)}
		}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

// SeccompRoot is where Localhost profiles lie; the path is Kubernetes' default,
// so that manifests and profile installers work unchanged.
const SeccompRoot = "/var/lib/kubelet/seccomp"

func apparmor(p *corev1.AppArmorProfile) *runtimeapi.SecurityProfile {
	if p == nil {
		return nil
	}
	switch p.Type {
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case corev1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile != nil {
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
		}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}
