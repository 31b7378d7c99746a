package core

import (
	"regexp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

func (v *podValidator) checkSecurity() {
	s := v.spec.SecurityContext
	if v.spec.ShareProcessNamespace != nil && *v.spec.ShareProcessNamespace && v.spec.HostPID {
		v.add(field.Invalid(v.at.Child("securityContext", "shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	if s == nil {
		return
	}
	at := v.at.Child("securityContext")
	v.checkID(at.Child("runAsUser"), s.RunAsUser, validation.IsValidUserID)
	v.checkID(at.Child("runAsGroup"), s.RunAsGroup, validation.IsValidGroupID)
	v.checkID(at.Child("fsGroup"), s.FSGroup, validation.IsValidGroupID)
	for i := range s.SupplementalGroups {
		v.checkID(at.Child("supplementalGroups").Index(i), &s.SupplementalGroups[i], validation.IsValidGroupID)
	}
	names := map[string]bool{}
	for i, c := range s.Sysctls {
		at := at.Child("sysctls").Index(i).Child("name")
		switch {
		case c.Name == "":
			v.add(field.Required(at, ""))
		case len(c.Name) > 253 || !sysctlName.MatchString(c.Name):
			v.add(field.Invalid(at, c.Name, "must have at most 253 characters and match regex "+sysctlName.String()))
		case names[c.Name]:
			v.add(field.Duplicate(at, c.Name))
		}
		names[c.Name] = true
	}
	if p := s.FSGroupChangePolicy; p != nil {
		v.add(check.OneOf(at.Child("fsGroupChangePolicy"), *p, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)...)
	}
	if p := s.SupplementalGroupsPolicy; p != nil {
		v.add(check.Exactly(at.Child("supplementalGroupsPolicy"), *p, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	}
	if p := s.SELinuxChangePolicy; p != nil {
		v.add(check.Exactly(at.Child("seLinuxChangePolicy"), *p, corev1.SELinuxChangePolicyRecursive)...)
	}
	v.checkSeccomp(at.Child("seccompProfile"), s.SeccompProfile)
	v.checkAppArmor(at.Child("appArmorProfile"), s.AppArmorProfile)
}

func (v *podValidator) checkID(at *field.Path, id *int64, valid func(int64) []string) {
	if id != nil {
		v.add(check.Each(at, *id, valid(*id))...)
	}
}

func (v *podValidator) checkSeccomp(at *field.Path, p *corev1.SeccompProfile) {
	if p == nil {
		return
	}
	if p.Type == "" {
		v.add(field.Required(at.Child("type"), "type is required when seccompProfile is set"))
		return
	}
	v.add(check.OneOf(at.Child("type"), p.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)...)
	switch {
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile == nil:
		v.add(field.Required(at.Child("localhostProfile"), "must be set when seccomp type is Localhost"))
	case p.Type == corev1.SeccompProfileTypeLocalhost:
		v.checkRelative(at.Child("localhostProfile"), *p.LocalhostProfile)
	case p.LocalhostProfile != nil:
		v.add(field.Invalid(at.Child("localhostProfile"), *p.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
}

func (v *podValidator) checkAppArmor(at *field.Path, p *corev1.AppArmorProfile) {
	if p == nil {
		return
	}
	if p.Type == "" {
		v.add(field.Required(at.Child("type"), "type is required when appArmorProfile is set"))
		return
	}
	v.add(check.OneOf(at.Child("type"), p.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)...)
	switch {
	case p.Type == corev1.AppArmorProfileTypeLocalhost && (p.LocalhostProfile == nil || *p.LocalhostProfile == ""):
		v.add(field.Required(at.Child("localhostProfile"), "must be set when AppArmor type is Localhost"))
	case p.Type != corev1.AppArmorProfileTypeLocalhost && p.LocalhostProfile != nil:
		v.add(field.Invalid(at.Child("localhostProfile"), *p.LocalhostProfile, "can only be set when AppArmor type is Localhost"))
	}
}

func (v *podValidator) checkContainerSecurity(at *field.Path, s *corev1.SecurityContext) {
	if s == nil {
		return
	}
	v.checkID(at.Child("runAsUser"), s.RunAsUser, validation.IsValidUserID)
	v.checkID(at.Child("runAsGroup"), s.RunAsGroup, validation.IsValidGroupID)
	if p := s.ProcMount; p != nil {
		v.add(check.OneOf(at.Child("procMount"), *p, corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
		if hostUsers := v.spec.HostUsers; *p == corev1.UnmaskedProcMount && (hostUsers == nil || *hostUsers) {
			v.add(field.Invalid(at.Child("procMount"), *p, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	v.checkSeccomp(at.Child("seccompProfile"), s.SeccompProfile)
	v.checkAppArmor(at.Child("appArmorProfile"), s.AppArmorProfile)
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		if s.Privileged != nil && *s.Privileged {
			v.add(field.Invalid(at, s, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if s.Capabilities != nil {
			for _, c := range s.Capabilities.Add {
				if c == "CAP_SYS_ADMIN" {
					v.add(field.Invalid(at, s, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
				}
			}
		}
	}
}
