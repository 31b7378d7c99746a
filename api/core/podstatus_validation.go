package core

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// validatePodStatusUpdate checks what a node's agent says of a pod.
func validatePodStatusUpdate(p, old *corev1.Pod) field.ErrorList {
	at, s := field.NewPath("status"), &p.Status
	var errs errorList
	if p.Spec.NodeName != old.Spec.NodeName {
		errs = append(errs, field.Forbidden(at.Child("nodeName"), "may not be changed directly"))
	}
	if n := s.NominatedNodeName; n != "" {
		errs = append(errs, check.DNSSubdomain(at.Child("nominatedNodeName"), n)...)
		if p.Spec.NodeName != "" && n != old.Status.NominatedNodeName {
			errs = append(errs, field.Forbidden(at.Child("nominatedNodeName"), "may not be set on pods that are already bound to a node"))
		}
	}
	if s.ObservedGeneration < 0 {
		errs = append(errs, field.Invalid(at.Child("observedGeneration"), s.ObservedGeneration, "must be a non-negative integer"))
	}
	for i, c := range s.Conditions {
		errs = append(errs, check.QualifiedName(at.Child("conditions").Index(i).Child("Type"), string(c.Type))...)
	}
	if old.Status.QOSClass != "" && s.QOSClass != old.Status.QOSClass {
		errs = append(errs, field.Invalid(at.Child("qosClass"), s.QOSClass, "field is immutable"))
	}
	errs = append(errs, checkAddresses(at, s)...)
	for i, c := range s.ResourceClaimStatuses {
		at := at.Child("resourceClaimStatuses").Index(i)
		if !slices.ContainsFunc(p.Spec.ResourceClaims, func(pc corev1.PodResourceClaim) bool { return pc.Name == c.Name }) {
			errs = append(errs, field.Invalid(at.Child("name"), c.Name, "must match the name of an entry in `spec.resourceClaims`"))
		}
		if n := c.ResourceClaimName; n != nil {
			errs = append(errs, check.DNSSubdomain(at.Child("name"), *n)...)
		}
	}
	for _, l := range []struct {
		name       string
		list       []corev1.ContainerStatus
		containers []corev1.Container
	}{{"containerStatuses", s.ContainerStatuses, p.Spec.Containers}, {"initContainerStatuses", s.InitContainerStatuses, p.Spec.InitContainers}, {"ephemeralContainerStatuses", s.EphemeralContainerStatuses, nil}} {
		for i := range l.list {
			errs = append(errs, checkContainerStatus(at.Child(l.name).Index(i), &l.list[i], l.containers)...)
		}
	}
	errs = append(errs, checkEnded(at.Child("containerStatuses"), &p.Spec, p.Spec.Containers, s.ContainerStatuses, old.Status.ContainerStatuses)...)
	return append(errs, checkEnded(at.Child("initContainerStatuses"), &p.Spec, p.Spec.InitContainers, s.InitContainerStatuses, old.Status.InitContainerStatuses)...)
}

// checkEnded: what has ended for good does not run again, unless a rule may begin the
// whole pod anew.
func checkEnded(at *field.Path, spec *corev1.PodSpec, containers []corev1.Container, now, was []corev1.ContainerStatus) (errs errorList) {
	if beginsAnew(spec.Containers) || beginsAnew(spec.InitContainers) {
		return nil
	}
	for i, o := range was {
		c := corev1.Container{}
		if k := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == o.Name }); k >= 0 {
			c = containers[k]
		}
		if o.State.Terminated == nil || restarts(spec, &c, o.State.Terminated.ExitCode) {
			continue
		}
		if j := slices.IndexFunc(now, func(n corev1.ContainerStatus) bool { return n.Name == o.Name }); j >= 0 && now[j].State.Terminated == nil {
			errs = append(errs, field.Forbidden(at.Index(i).Child("state"), "may not be transitioned to non-terminated state"))
		}
	}
	return errs
}

func beginsAnew(containers []corev1.Container) bool {
	return slices.ContainsFunc(containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		})
	})
}

// restarts tells whether a container starts again that has ended with a code: by one
// of its rules, or by its own policy or else the pod's.
func restarts(spec *corev1.PodSpec, c *corev1.Container, code int32) bool {
	for _, r := range c.RestartPolicyRules {
		if e := r.ExitCodes; e != nil && slices.Contains(e.Values, code) == (e.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	policy := string(spec.RestartPolicy)
	if c.RestartPolicy != nil {
		policy = string(*c.RestartPolicy)
	}
	switch corev1.RestartPolicy(policy) {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// checkAddresses checks the pod's addresses and its node's: one of a family.
func checkAddresses(at *field.Path, s *corev1.PodStatus) (errs errorList) {
	var pod, host []string
	for i, ip := range s.PodIPs {
		errs = append(errs, validation.IsValidIPForLegacyField(at.Child("podIPs").Index(i), ip.IP, false, nil)...)
		pod = append(pod, ip.IP)
	}
	for i, ip := range s.HostIPs {
		errs = append(errs, validation.IsValidIPForLegacyField(at.Child("hostIPs").Index(i), ip.IP, false, nil)...)
		host = append(host, ip.IP)
	}
	if len(host) > 0 && s.HostIP != host[0] {
		errs = append(errs, field.Invalid(at.Child("hostIPs").Index(0).Child("ip"), host[0], "must be equal to `hostIP`"))
	}
	errs = append(errs, checkFamilies(at.Child("podIPs"), pod)...)
	return append(errs, checkFamilies(at.Child("hostIPs"), host)...)
}

func checkFamilies(at *field.Path, ips []string) (errs errorList) {
	if len(ips) < 2 {
		return nil
	}
	var shown []any
	var families []bool
	for i, ip := range ips {
		shown = append(shown, struct{ IP string }{ip}) // as Kubernetes writes it
		a, err := netip.ParseAddr(ip)
		if err != nil {
			errs = append(errs, field.InternalError(at, fmt.Errorf("failed to check for dual stack with error:invalid IP[%d]: %s", i, ip)))
			break
		}
		families = append(families, a.Is4())
	}
	if len(ips) > 2 || len(families) < 2 || families[0] == families[1] {
		errs = append(errs, field.Invalid(at, shown, "may specify no more than one IP for each IP family"))
	}
	return errs
}

func checkContainerStatus(at *field.Path, s *corev1.ContainerStatus, containers []corev1.Container) (errs errorList) {
	if u := s.User; u != nil && u.Linux != nil {
		at := at.Child("user", "linux")
		check := func(at *field.Path, id int64) {
			if id < 0 || id > math.MaxInt32 {
				errs = append(errs, field.Invalid(at, id, "must be between 0 and 2147483647, inclusive"))
			}
		}
		check(at.Child("uid"), u.Linux.UID)
		check(at.Child("gid"), u.Linux.GID)
		for i, g := range u.Linux.SupplementalGroups {
			check(at.Child("supplementalGroups").Index(i), g)
		}
	}
	var spec corev1.Container
	if i := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == s.Name }); i >= 0 {
		spec = containers[i]
	}
	for i, r := range s.AllocatedResourcesStatus {
		errs = append(errs, checkHealth(at.Child("allocatedResourcesStatus").Index(i), &r, &spec)...)
	}
	return errs
}

// checkHealth checks what is said of the devices that a container was given.
func checkHealth(at *field.Path, s *corev1.ResourceStatus, c *corev1.Container) (errs errorList) {
	_, known := c.Resources.Requests[s.Name]
	for _, claim := range c.Resources.Claims {
		name := "claim:" + claim.Name
		known = known || string(s.Name) == name || string(s.Name) == name+"/"+claim.Request
	}
	if !known {
		errs = append(errs, field.Invalid(at.Child("name"), s.Name, "must match one of the container's resource requests"))
	}
	seen := map[corev1.ResourceID]bool{}
	for i, r := range s.Resources {
		at := at.Child("resources").Index(i)
		if seen[r.ResourceID] {
			errs = append(errs, field.Duplicate(at.Child("resourceID"), r.ResourceID))
		}
		seen[r.ResourceID] = true
		errs = append(errs, check.Exactly(at.Child("health"), r.Health, corev1.ResourceHealthStatusHealthy, corev1.ResourceHealthStatusUnhealthy, corev1.ResourceHealthStatusUnknown)...)
	}
	return errs
}
