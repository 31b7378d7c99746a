package core

import (
	"fmt"
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// ValidatePodTemplate checks a workload's template, which is at path at.
func ValidatePodTemplate(t *corev1.PodTemplateSpec, at *field.Path) field.ErrorList {
	errs := check.Labels(at.Child("labels"), t.Labels)
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, at.Child("annotations"))...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(at.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return append(errs, ValidatePodSpec(&t.Spec, at.Child("spec"))...)
}

// ValidatePodSpec checks what pods and templates share.
func ValidatePodSpec(s *corev1.PodSpec, at *field.Path) field.ErrorList {
	v := podValidator{spec: s, at: at}
	v.volumes = map[string]*corev1.Volume{}
	v.checkVolumes()
	v.checkContainers()
	v.checkNames()
	v.checkPolicies()
	v.checkSecurity()
	v.checkScheduling()
	v.checkDNS()
	return v.errs
}

// podValidator gathers the errors of one pod spec.
type podValidator struct {
	spec    *corev1.PodSpec
	at      *field.Path
	volumes map[string]*corev1.Volume
	errs    errorList
}

func (v *podValidator) add(errs ...*field.Error) { v.errs = append(v.errs, errs...) }

func (v *podValidator) checkNames() {
	s, at := v.spec, v.at
	if s.ServiceAccountName != "" {
		v.add(check.DNSSubdomain(at.Child("serviceAccountName"), s.ServiceAccountName)...)
	}
	if s.NodeName != "" {
		v.add(check.DNSSubdomain(at.Child("nodeName"), s.NodeName)...)
	}
	if s.Hostname != "" {
		v.add(check.DNSLabel(at.Child("hostname"), s.Hostname)...)
	}
	if s.Subdomain != "" {
		v.add(check.DNSLabel(at.Child("subdomain"), s.Subdomain)...)
	}
	if s.PriorityClassName != "" {
		v.add(check.DNSSubdomain(at.Child("priorityClassName"), s.PriorityClassName)...)
	}
	if s.RuntimeClassName != nil {
		v.add(check.DNSSubdomain(at.Child("runtimeClassName"), *s.RuntimeClassName)...)
	}
	for i, a := range s.HostAliases {
		p := at.Child("hostAliases").Index(i)
		v.add(validation.IsValidIPForLegacyField(p.Child("ip"), a.IP, false, nil)...)
		for j, h := range a.Hostnames {
			v.add(check.DNSSubdomain(p.Child("hostnames").Index(j), h)...)
		}
	}
}

func (v *podValidator) checkPolicies() {
	s, at := v.spec, v.at
	v.add(check.OneOf(at.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	v.add(check.OneOf(at.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		v.add(field.Invalid(at.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	if s.PreemptionPolicy != nil {
		v.add(check.OneOfOrEmpty(at.Child("preemptionPolicy"), *s.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	if s.OS != nil {
		if s.OS.Name == "" {
			v.add(field.Required(at.Child("os", "name"), ""))
		} else {
			v.add(check.Exactly(at.Child("os"), s.OS.Name, corev1.Linux, corev1.Windows)...)
		}
	}
	for i, g := range s.ReadinessGates {
		v.add(check.QualifiedName(at.Child("readinessGates").Index(i).Child("conditionType"), string(g.ConditionType))...)
	}
	for name, q := range s.Overhead {
		v.add(checkResource(at.Child("overhead").Key(string(name)), name, q)...)
	}
	if n := s.HostnameOverride; n != nil {
		v.add(check.DNSSubdomain(at.Child("hostnameOverride"), *n)...)
		if s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN {
			v.add(field.Forbidden(at.Child("setHostnameAsFQDN"), "may not be specified when hostnameOverride is set"))
		}
	}
	v.checkPodResources(at.Child("resources"))
	v.checkPodClaims(at.Child("resourceClaims"))
	v.checkOS()
	if s.HostUsers != nil && !*s.HostUsers {
		for _, f := range []struct {
			name string
			set  bool
		}{{"hostNetwork", s.HostNetwork}, {"hostPID", s.HostPID}, {"hostIPC", s.HostIPC}} {
			if f.set {
				v.add(field.Forbidden(at.Child(f.name), "when `hostUsers` is false"))
			}
		}
	}
}

func (v *podValidator) checkDNS() {
	at, c := v.at.Child("dnsConfig"), v.spec.DNSConfig
	if v.spec.DNSPolicy == corev1.DNSNone {
		if c == nil {
			v.add(field.Required(at, fmt.Sprintf("must provide `dnsConfig` when `dnsPolicy` is %s", corev1.DNSNone)))
			return
		}
		if len(c.Nameservers) == 0 {
			v.add(field.Required(at.Child("nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone)))
		}
	}
	if c == nil {
		return
	}
	const maxServers, maxSearches, maxSearchLength = 3, 32, 2048
	if len(c.Nameservers) > maxServers {
		v.add(field.Invalid(at.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxServers)))
	}
	for i, ns := range c.Nameservers {
		v.add(validation.IsValidIPForLegacyField(at.Child("nameservers").Index(i), ns, false, nil)...)
	}
	if len(c.Searches) > maxSearches {
		v.add(field.Invalid(at.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearches)))
	}
	joined := 0
	for i, s := range c.Searches {
		at := at.Child("searches").Index(i)
		joined += len(s) + 1
		if name := strings.TrimSuffix(s, "."); s != "." {
			v.add(check.Each(at, name, validation.IsDNS1123SubdomainWithUnderscore(name))...)
		}
	}
	if joined-1 > maxSearchLength {
		v.add(field.Invalid(at.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchLength)))
	}
	for i, o := range c.Options {
		if o.Name == "" {
			v.add(field.Required(at.Child("options").Index(i), "must not be empty"))
		}
	}
}
