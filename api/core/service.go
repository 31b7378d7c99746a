package core

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// Service declares v1 Service.
func Service() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "Service", Resource: "services", ShortNames: []string{"svc"}, Categories: []string{"all"},
		AllowCreateOnUpdate: true,
		Namespaced:          true, Storage: "services/specs", HasStatus: true, NoGeneration: true,
		ValidName:      validation.NameIsDNSLabel,
		Default:        kind.Each(defaultService),
		PrepareUpdate:  kind.Pair(prepareServiceUpdate),
		Validate:       kind.Check(validateService),
		ValidateUpdate: kind.CheckChange(validateServiceUpdate),
		ValidateStatus: kind.CheckChange(validateServiceStatus),
		Fields: kind.FieldsOf(func(s *corev1.Service) fields.Set {
			return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
		}),
		Columns: append(columns.Named(
			columns.Text("Type", "How the service is reached."),
			columns.Text("Cluster-IP", "Its address inside the cluster."),
			columns.Text("External-IP", "Its addresses outside the cluster."),
			columns.Text("Port(s)", "Its ports."),
			columns.Age(),
		), columns.Wide(columns.Text("Selector", "Labels of the pods that serve it."))...),
		Row: kind.RowOf(serviceRow),
	}
}

func defaultService(s *corev1.Service) {
	spec := &s.Spec
	orElse(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}
	}
	orElse(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		orElse(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyAccessible(s) {
		orElse(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type != corev1.ServiceTypeExternalName {
		orNew(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		orNew(&spec.AllocateLoadBalancerNodePorts, true)
		for i := range s.Status.LoadBalancer.Ingress {
			if in := &s.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				orNew(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
	// The first of clusterIPs is clusterIP; a client of either may leave the other out.
	if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	// Headless services are not seen by the allocator of addresses.
	if spec.ClusterIP == corev1.ClusterIPNone {
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		}
		orNew(&spec.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack)
	}
}

// prepareServiceUpdate keeps the status, but for the addresses of a load balancer
// that is none any more. A client may change clusterIP alone.
func prepareServiceUpdate(s, old *corev1.Service) {
	s.Status = *old.Status.DeepCopy()
	if old.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.Type != old.Spec.Type {
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
	if ip := s.Spec.ClusterIP; ip != "" && ip != old.Spec.ClusterIP && slices.Equal(s.Spec.ClusterIPs, old.Spec.ClusterIPs) {
		s.Spec.ClusterIPs = []string{ip}
	}
}

func externallyAccessible(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

func serviceRow(s *corev1.Service, now time.Time) []any {
	ip := columns.None
	if len(s.Spec.ClusterIPs) > 0 {
		ip = s.Spec.ClusterIPs[0]
	}
	ports := make([]string, len(s.Spec.Ports))
	for i, p := range s.Spec.Ports {
		if ports[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol); p.NodePort > 0 {
			ports[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		}
	}
	return []any{s.Name, string(s.Spec.Type), ip, externalIPs(s), columns.Or(strings.Join(ports, ","), columns.None),
		columns.Created(s, now), columns.Labels(s.Spec.Selector)}
}

func externalIPs(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		all := slices.Concat(balancerAddresses(s.Status.LoadBalancer.Ingress), s.Spec.ExternalIPs)
		return columns.Or(strings.Join(all, ","), "<pending>")
	}
	return columns.Or(strings.Join(s.Spec.ExternalIPs, ","), columns.None)
}

func balancerAddresses(in []corev1.LoadBalancerIngress) []string {
	var out []string
	for _, i := range in {
		if a := columns.Or(i.IP, i.Hostname); a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	slices.Sort(out)
	return out
}

// Endpoints declares v1 Endpoints.
func Endpoints() *kind.Kind {
	return &kind.Kind{
		Version: "v1", Kind: "Endpoints", Resource: "endpoints", Singular: "endpoints", ShortNames: []string{"ep"},
		AllowCreateOnUpdate: true,
		Namespaced:          true, Storage: "services/endpoints", NoGeneration: true,
		Deprecated: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
		Default: kind.Each(func(e *corev1.Endpoints) {
			for i := range e.Subsets {
				for j := range e.Subsets[i].Ports {
					orElse(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
				}
			}
		}),
		Validate: kind.Check(validateEndpoints),
		Columns:  columns.Named(columns.Text("Endpoints", "Ready addresses."), columns.Age()),
		Row: kind.RowOf(func(e *corev1.Endpoints, now time.Time) []any {
			var all []string
			for _, s := range e.Subsets {
				for _, a := range s.Addresses {
					if len(s.Ports) == 0 {
						all = append(all, a.IP)
					}
					for _, p := range s.Ports {
						all = append(all, joinHostPort(a.IP, p.Port))
					}
				}
			}
			return []any{e.Name, columns.More(all, 3), columns.Created(e, now)}
		}),
	}
}
