package podspec

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxOptions are what a sandbox needs beyond its pod.
type SandboxOptions struct {
	Attempt       uint32
	LogDir        string
	CgroupRoot    string
	Tasks         int64 // how many the pod may have; 0 or -1: no limit of its own
	ClusterDomain string
	DNS           *runtimeapi.DNSConfig
	Users         *runtimeapi.UserNamespace // nil: the host's
}

// Sandbox builds the configuration of a pod's sandbox.
func Sandbox(pod *corev1.Pod, o SandboxOptions) *runtimeapi.PodSandboxConfig {
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: o.Attempt},
		LogDirectory: o.LogDir,
		DnsConfig:    o.DNS,
		Labels:       SandboxLabels(pod),
		Annotations:  pod.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    CgroupParent(o.CgroupRoot, pod),
			SecurityContext: sandboxSecurity(pod),
			Sysctls:         map[string]string{},
			Resources:       PodResources(pod),
			Overhead:        Overhead(pod),
		},
	}
	if o.Tasks > 0 {
		c.Linux.Resources.Unified = map[string]string{"pids.max": strconv.FormatInt(o.Tasks, 10)}
	}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = o.Users
	if !pod.Spec.HostNetwork {
		name, domain := Hostname(pod, o.ClusterDomain)
		if pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && domain != "" {
			name += "." + domain
		}
		c.Hostname = name
	}
	if pod.Spec.SecurityContext != nil {
		for _, s := range pod.Spec.SecurityContext.Sysctls {
			c.Linux.Sysctls[s.Name] = s.Value
		}
	}
	Containers(pod, func(ct *corev1.Container, _ bool) {
		for _, p := range ct.Ports {
			if p.HostPort == 0 && !pod.Spec.HostNetwork {
				continue
			}
			c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{
				Protocol: protocol(p.Protocol), ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP,
			})
		}
	})
	return c
}

func protocol(p corev1.Protocol) runtimeapi.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return runtimeapi.Protocol_UDP
	case corev1.ProtocolSCTP:
		return runtimeapi.Protocol_SCTP
	}
	return runtimeapi.Protocol_TCP
}

func sandboxSecurity(pod *corev1.Pod) *runtimeapi.LinuxSandboxSecurityContext {
	s := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: NamespaceOptions(pod),
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	s.SupplementalGroups, s.SupplementalGroupsPolicy = groups(pod)
	if p := pod.Spec.SecurityContext; p != nil {
		if p.RunAsUser != nil {
			s.RunAsUser = &runtimeapi.Int64Value{Value: *p.RunAsUser}
		}
		// The interface refuses a group without a user.
		if p.RunAsGroup != nil && p.RunAsUser != nil {
			s.RunAsGroup = &runtimeapi.Int64Value{Value: *p.RunAsGroup}
		}
		s.SelinuxOptions = selinux(p.SELinuxOptions)
	}
	Containers(pod, func(c *corev1.Container, _ bool) {
		if c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged {
			s.Privileged = true
		}
	})
	return s
}
