package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkOS refuses what the operating system that a pod names does not have.
func (v *podValidator) checkOS() {
	os := v.spec.OS
	switch {
	case os == nil:
	case os.Name == corev1.Windows:
		v.checkWindows()
	case os.Name == corev1.Linux:
		if s := v.spec.SecurityContext; s != nil && s.WindowsOptions != nil {
			v.add(field.Forbidden(v.at.Child("securityContext", "windowsOptions"), "windows options cannot be set for a linux pod"))
		}
		v.eachSecurityContext(func(at *field.Path, s *corev1.SecurityContext) {
			if s.WindowsOptions != nil {
				v.add(field.Forbidden(at.Child("windowsOptions"), "windows options cannot be set for a linux pod"))
			}
		})
	}
}

// forbidden is a field and whether it is set.
type forbidden struct {
	name string
	set  bool
}

func (v *podValidator) notOnWindows(at *field.Path, fields []forbidden) {
	for _, f := range fields {
		if f.set {
			v.add(field.Forbidden(at.Child(f.name), "cannot be set for a windows pod"))
		}
	}
}

func (v *podValidator) checkWindows() {
	s := v.spec
	if s.Resources != nil {
		v.add(field.Forbidden(v.at.Child("resources"), "may not be set for a windows pod"))
	}
	v.notOnWindows(v.at, []forbidden{
		{"hostPID", s.HostPID}, {"hostIPC", s.HostIPC}, {"hostUsers", s.HostUsers != nil}, {"shareProcessNamespace", s.ShareProcessNamespace != nil},
	})
	if c := s.SecurityContext; c != nil {
		v.notOnWindows(v.at.Child("securityContext"), []forbidden{
			{"appArmorProfile", c.AppArmorProfile != nil}, {"seLinuxOptions", c.SELinuxOptions != nil}, {"seccompProfile", c.SeccompProfile != nil},
			{"fsGroup", c.FSGroup != nil}, {"fsGroupChangePolicy", c.FSGroupChangePolicy != nil}, {"sysctls", len(c.Sysctls) > 0},
			{"runAsUser", c.RunAsUser != nil}, {"runAsGroup", c.RunAsGroup != nil}, {"supplementalGroups", c.SupplementalGroups != nil},
			{"supplementalGroupsPolicy", c.SupplementalGroupsPolicy != nil},
		})
	}
	v.eachSecurityContext(func(at *field.Path, c *corev1.SecurityContext) {
		v.notOnWindows(at, []forbidden{
			{"appArmorProfile", c.AppArmorProfile != nil}, {"seLinuxOptions", c.SELinuxOptions != nil}, {"seccompProfile", c.SeccompProfile != nil},
			{"capabilities", c.Capabilities != nil}, {"readOnlyRootFilesystem", c.ReadOnlyRootFilesystem != nil}, {"privileged", c.Privileged != nil},
			{"allowPrivilegeEscalation", c.AllowPrivilegeEscalation != nil}, {"procMount", c.ProcMount != nil}, {"runAsUser", c.RunAsUser != nil},
			{"runAsGroup", c.RunAsGroup != nil},
		})
	})
}

// eachSecurityContext visits those of all containers.
func (v *podValidator) eachSecurityContext(visit func(*field.Path, *corev1.SecurityContext)) {
	one := func(at *field.Path, c *corev1.SecurityContext) {
		if c != nil {
			visit(at.Child("securityContext"), c)
		}
	}
	for i := range v.spec.Containers {
		one(v.at.Child("containers").Index(i), v.spec.Containers[i].SecurityContext)
	}
	for i := range v.spec.InitContainers {
		one(v.at.Child("initContainers").Index(i), v.spec.InitContainers[i].SecurityContext)
	}
	for i := range v.spec.EphemeralContainers {
		one(v.at.Child("ephemeralContainers").Index(i), v.spec.EphemeralContainers[i].SecurityContext)
	}
}
