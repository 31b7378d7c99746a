package registry

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// keepAddresses carries allocations over when a client's update leaves them out.
func keepAddresses(svc, old *corev1.Service) {
	if hasClusterIP(svc) && hasClusterIP(old) {
		if svc.Spec.ClusterIP == "" && len(svc.Spec.ClusterIPs) == 0 {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = old.Spec.ClusterIP, slices.Clone(old.Spec.ClusterIPs)
		} else if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
	}
	if hasNodePorts(svc) && hasNodePorts(old) {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			for _, o := range old.Spec.Ports {
				if p.NodePort == 0 && p.Port == o.Port && p.Protocol == o.Protocol {
					p.NodePort = o.NodePort
				}
			}
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName && hasClusterIP(old) {
		if svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
		}
	}
	if !hasNodePorts(svc) && hasNodePorts(old) {
		for i := range svc.Spec.Ports {
			for _, o := range old.Spec.Ports {
				if svc.Spec.Ports[i].NodePort == o.NodePort {
					svc.Spec.Ports[i].NodePort = 0
				}
			}
		}
	}
}

// dropTypeFields clears what only the former type could have, unless the client
// changed it in the same breath: that is its mistake to hear of.
func dropTypeFields(svc, old *corev1.Service) {
	s, o := &svc.Spec, &old.Spec
	external := func(svc *corev1.Service) bool {
		t := svc.Spec.Type
		return t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer || t == corev1.ServiceTypeClusterIP && len(svc.Spec.ExternalIPs) > 0
	}
	if external(old) && !external(svc) && s.ExternalTrafficPolicy == o.ExternalTrafficPolicy {
		s.ExternalTrafficPolicy = ""
	}
	balanced, wasBalanced := s.Type == corev1.ServiceTypeLoadBalancer, o.Type == corev1.ServiceTypeLoadBalancer
	local := balanced && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if !local && s.HealthCheckNodePort == o.HealthCheckNodePort {
		s.HealthCheckNodePort = 0
	}
	if wasBalanced && !balanced {
		if equalPointers(s.AllocateLoadBalancerNodePorts, o.AllocateLoadBalancerNodePorts) {
			s.AllocateLoadBalancerNodePorts = nil
		}
		if equalPointers(s.LoadBalancerClass, o.LoadBalancerClass) {
			s.LoadBalancerClass = nil
		}
	}
	if hasClusterIP(old) && !hasClusterIP(svc) {
		if equalPointers(s.IPFamilyPolicy, o.IPFamilyPolicy) {
			s.IPFamilyPolicy = nil
		}
		if slices.Equal(s.IPFamilies, o.IPFamilies) {
			s.IPFamilies = nil
		}
		if equalPointers(s.InternalTrafficPolicy, o.InternalTrafficPolicy) {
			s.InternalTrafficPolicy = nil
		}
	}
}

func equalPointers[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func hasClusterIP(svc *corev1.Service) bool { return svc.Spec.Type != corev1.ServiceTypeExternalName }

func hasNodePorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	}
	return false
}
