package core

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateService(s *corev1.Service) field.ErrorList {
	at := field.NewPath("spec")
	spec := &s.Spec
	headless := spec.ClusterIP == corev1.ClusterIPNone
	var errs errorList
	if len(spec.Ports) == 0 && !headless && spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(at.Child("ports"), ""))
	}
	errs = append(errs, check.OneOf(at.Child("type"), spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	errs = append(errs, checkServiceType(at, spec, headless)...)
	errs = append(errs, checkServicePorts(at.Child("ports"), spec)...)
	errs = append(errs, check.Labels(at.Child("selector"), spec.Selector)...)
	errs = append(errs, check.OneOf(at.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if t := *c.ClientIP.TimeoutSeconds; t <= 0 || t > 86400 {
			errs = append(errs, field.Invalid(at.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), t, "must be greater than 0 and less than 86400"))
		}
	}
	for i, ip := range spec.ExternalIPs {
		at := at.Child("externalIPs").Index(i)
		bad := validation.IsValidIPForLegacyField(at, ip, false, nil)
		if len(bad) == 0 {
			bad = check.Reachable(at, ip)
		}
		errs = append(errs, bad...)
	}
	errs = append(errs, checkTrafficPolicies(at, s)...)
	return append(errs, checkClusterIPs(at, spec)...)
}

func checkServiceType(at *field.Path, s *corev1.ServiceSpec, headless bool) errorList {
	var errs errorList
	switch s.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if headless {
			errs = append(errs, field.Invalid(at.Child("clusterIPs").Index(0), s.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", s.Type)))
		}
	case corev1.ServiceTypeExternalName:
		const forbidden = "may not be set for ExternalName services"
		if len(s.ClusterIPs) > 0 {
			errs = append(errs, field.Forbidden(at.Child("clusterIPs"), forbidden))
		}
		if len(s.IPFamilies) > 0 {
			errs = append(errs, field.Forbidden(at.Child("ipFamilies"), forbidden))
		}
		if s.IPFamilyPolicy != nil {
			errs = append(errs, field.Forbidden(at.Child("ipFamilyPolicy"), forbidden))
		}
		if s.ExternalName == "" {
			errs = append(errs, field.Required(at.Child("externalName"), ""))
		} else {
			name := s.ExternalName
			if name[len(name)-1] == '.' {
				name = name[:len(name)-1]
			}
			errs = append(errs, check.Each(at.Child("externalName"), s.ExternalName, validation.IsDNS1123Subdomain(name))...)
		}
	}
	if s.LoadBalancerClass != nil && s.Type == corev1.ServiceTypeLoadBalancer {
		errs = append(errs, check.QualifiedName(at.Child("loadBalancerClass"), *s.LoadBalancerClass)...)
	}
	if s.Type == corev1.ServiceTypeLoadBalancer {
		for i, r := range s.LoadBalancerSourceRanges {
			errs = append(errs, validation.IsValidCIDRForLegacyField(at.Child("LoadBalancerSourceRanges").Index(i), strings.TrimSpace(r), false, nil)...)
		}
	}
	if s.Type != corev1.ServiceTypeLoadBalancer {
		if len(s.LoadBalancerSourceRanges) > 0 {
			errs = append(errs, field.Forbidden(at.Child("LoadBalancerSourceRanges"), "may only be used when `type` is 'LoadBalancer'"))
		}
		if s.AllocateLoadBalancerNodePorts != nil {
			errs = append(errs, field.Forbidden(at.Child("allocateLoadBalancerNodePorts"), "may only be used when `type` is 'LoadBalancer'"))
		}
		if s.LoadBalancerClass != nil {
			errs = append(errs, field.Forbidden(at.Child("loadBalancerClass"), "may only be used when `type` is 'LoadBalancer'"))
		}
	}
	return errs
}

func checkServicePorts(at *field.Path, s *corev1.ServiceSpec) errorList {
	var errs errorList
	names := map[string]bool{}
	ports, nodePorts := map[corev1.ServicePort]bool{}, map[corev1.ServicePort]bool{}
	for i, p := range s.Ports {
		at := at.Index(i)
		switch {
		case p.Name == "" && len(s.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), ""))
		case p.Name != "":
			errs = append(errs, check.DNSLabel(at.Child("name"), p.Name)...)
			if names[p.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		errs = append(errs, check.Port(at.Child("port"), p.Port)...)
		errs = append(errs, check.OneOf(at.Child("protocol"), p.Protocol, protocols...)...)
		errs = append(errs, check.PortNumberOrName(at.Child("targetPort"), p.TargetPort)...)
		if p.AppProtocol != nil {
			errs = append(errs, check.QualifiedName(at.Child("appProtocol"), *p.AppProtocol)...)
		}
		if s.ClusterIP == corev1.ClusterIPNone && p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal != p.Port && len(s.Selector) == 0 {
			errs = append(errs, field.Invalid(at.Child("targetPort"), p.TargetPort, "must be equal to the value of 'port' when clusterIP = None"))
		}
		if p.NodePort != 0 && (s.Type == corev1.ServiceTypeClusterIP || s.Type == corev1.ServiceTypeExternalName) {
			errs = append(errs, field.Forbidden(at.Child("nodePort"), fmt.Sprintf("may not be used when `type` is '%s'", s.Type)))
		}
		key := corev1.ServicePort{Protocol: p.Protocol, Port: p.Port}
		if ports[key] {
			errs = append(errs, field.Duplicate(at, key))
		}
		ports[key] = true
		if p.NodePort != 0 {
			key := corev1.ServicePort{Protocol: p.Protocol, NodePort: p.NodePort}
			if nodePorts[key] {
				errs = append(errs, field.Duplicate(at.Child("nodePort"), p.NodePort))
			}
			nodePorts[key] = true
		}
	}
	return errs
}

func checkTrafficPolicies(at *field.Path, s *corev1.Service) errorList {
	var errs errorList
	if p := s.Spec.ExternalTrafficPolicy; p != "" {
		if !externallyAccessible(s) {
			errs = append(errs, field.Invalid(at.Child("externalTrafficPolicy"), p, "may only be set for externally-accessible services"))
		} else {
			errs = append(errs, check.Exactly(at.Child("externalTrafficPolicy"), p, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
		}
	}
	errs = append(errs, checkHealthPort(at.Child("healthCheckNodePort"), &s.Spec)...)
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		errs = append(errs, check.Exactly(at.Child("internalTrafficPolicy"), *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		errs = append(errs, check.Exactly(at.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return errs
}

// checkHealthPort checks the port that balancers ask for a node's health. The
// server chooses it after this check, so it may be absent.
func checkHealthPort(at *field.Path, s *corev1.ServiceSpec) errorList {
	switch port := s.HealthCheckNodePort; {
	case port == 0:
		return nil
	case s.Type != corev1.ServiceTypeLoadBalancer || s.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal:
		return errorList{field.Invalid(at, port, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")}
	default:
		return check.Port(at, port)
	}
}

var families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

func checkClusterIPs(at *field.Path, s *corev1.ServiceSpec) errorList {
	var errs errorList
	if len(s.ClusterIPs) > 0 && s.ClusterIPs[0] != s.ClusterIP {
		errs = append(errs, field.Invalid(at.Child("clusterIPs"), s.ClusterIPs, "first value must match `clusterIP`"))
	}
	for i, ip := range s.ClusterIPs {
		if ip == corev1.ClusterIPNone {
			if i > 0 || len(s.ClusterIPs) > 1 {
				errs = append(errs, field.Invalid(at.Child("clusterIPs").Index(i), ip, "'None' must be the first and only value"))
			}
			continue
		}
		bad := validation.IsValidIPForLegacyField(at.Child("clusterIPs").Index(i), ip, false, nil)
		errs = append(errs, bad...)
		if a, err := netip.ParseAddr(ip); err == nil && i < len(s.IPFamilies) && slices.Contains(families, s.IPFamilies[i]) && (s.IPFamilies[i] == corev1.IPv4Protocol) != a.Is4() {
			errs = append(errs, field.Invalid(at.Child("clusterIPs").Index(i), ip, fmt.Sprintf("expected an %v value as indicated by `ipFamilies[%d]`", s.IPFamilies[i], i)))
		}
	}
	for i, f := range s.IPFamilies {
		errs = append(errs, check.Exactly(at.Child("ipFamilies").Index(i), f, families...)...)
		if slices.Contains(s.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(at.Child("ipFamilies").Index(i), f))
		}
	}
	if p := s.IPFamilyPolicy; p != nil {
		errs = append(errs, check.Exactly(at.Child("ipFamilyPolicy"), *p, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)...)
	}
	return errs
}

func validateServiceUpdate(s, old *corev1.Service) field.ErrorList {
	at := field.NewPath("spec", "clusterIPs")
	var errs errorList
	external := corev1.ServiceTypeExternalName
	if s.Spec.Type != external && old.Spec.Type != external && len(old.Spec.ClusterIPs) > 0 {
		if len(s.Spec.ClusterIPs) == 0 || s.Spec.ClusterIPs[0] != old.Spec.ClusterIPs[0] {
			errs = append(errs, field.Invalid(at.Index(0), s.Spec.ClusterIPs, "may not change once set"))
		}
	}
	if was := old.Spec.LoadBalancerClass; was != nil && s.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == s.Spec.Type &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass != *was) {
		errs = append(errs, field.Invalid(field.NewPath("spec", "loadBalancerClass"), s.Spec.LoadBalancerClass, "may not change once set"))
	}
	return append(errs, validateService(s)...)
}

func validateServiceStatus(s, _ *corev1.Service) field.ErrorList {
	var errs errorList
	at := field.NewPath("status", "loadBalancer", "ingress")
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) > 0 {
		return append(errs, field.Forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'"))
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		errs = append(errs, check.BalancerAddress(at.Index(i), in.IP, in.Hostname)...)
		switch mode := at.Index(i).Child("ipMode"); {
		case in.IPMode == nil:
		case in.IP == "":
			errs = append(errs, field.Forbidden(mode, "may not be specified when `ip` is not set"))
		default:
			errs = append(errs, check.Exactly(mode, *in.IPMode, corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)...)
		}
	}
	return errs
}

func validateEndpoints(e *corev1.Endpoints) field.ErrorList {
	var errs errorList
	for i := range e.Subsets {
		s, at := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(at, "must specify `addresses` or `notReadyAddresses`"))
		}
		for name, list := range map[string][]corev1.EndpointAddress{"addresses": s.Addresses, "notReadyAddresses": s.NotReadyAddresses} {
			for j, a := range list {
				errs = append(errs, checkEndpointAddress(at.Child(name).Index(j), a)...)
			}
		}
		for j, p := range s.Ports {
			at := at.Child("ports").Index(j)
			if p.Name == "" && len(s.Ports) > 1 {
				errs = append(errs, field.Required(at.Child("name"), ""))
			} else if p.Name != "" {
				errs = append(errs, check.DNSLabel(at.Child("name"), p.Name)...)
			}
			errs = append(errs, check.Port(at.Child("port"), p.Port)...)
			errs = append(errs, check.OneOf(at.Child("protocol"), p.Protocol, protocols...)...)
		}
	}
	return errs
}

func checkEndpointAddress(at *field.Path, a corev1.EndpointAddress) errorList {
	ip := at.Child("ip")
	errs := validation.IsValidIPForLegacyField(ip, a.IP, false, nil)
	if len(errs) > 0 {
		errs = append(errs, field.Invalid(ip, a.IP, "must be a valid IP address")) // upstream says it twice
	}
	if a.Hostname != "" {
		errs = append(errs, check.DNSLabel(at.Child("hostname"), a.Hostname)...)
	}
	if a.NodeName != nil {
		errs = append(errs, check.DNSSubdomain(at.Child("nodeName"), *a.NodeName)...)
	}
	return append(errs, check.Reachable(ip, a.IP)...)
}
