// Package network keeps a node's data path equal to the API's Services and
// EndpointSlices, and drains pods before they are stopped.
package network

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"knarr.dev/knarr/datapath/spec"
)

// Compile translates a Service and its EndpointSlices to the data path's terms,
// one entry for each port. Headless services and ExternalNames have none.
//
// Only ready endpoints get new connections: one that terminates has left before
// its process is told to stop.
func Compile(svc *corev1.Service, slices []*discoveryv1.EndpointSlice, node string) []spec.Service {
	ips := addresses(svc.Spec.ClusterIPs...)
	if len(svc.Spec.ClusterIPs) == 0 {
		ips = addresses(svc.Spec.ClusterIP)
	}
	if len(ips) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	external := addresses(svc.Spec.ExternalIPs...)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		external = append(external, addresses(in.IP)...)
	}
	out := make([]spec.Service, 0, len(svc.Spec.Ports))
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		out = append(out, spec.Service{
			Namespace: svc.Namespace, Name: svc.Name, PortName: p.Name,
			IPs: ips, ExternalIPs: external,
			Protocol: protocol(p.Protocol), Port: uint16(p.Port), NodePort: uint16(p.NodePort),
			Affinity:      affinity(svc),
			InternalLocal: svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
			ExternalLocal: svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
			Backends:      backends(p, slices, node),
		})
	}
	return out
}

func addresses(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func protocol(p corev1.Protocol) spec.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return spec.UDP
	case corev1.ProtocolSCTP:
		return spec.SCTP
	}
	return spec.TCP
}

func affinity(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	}
	return time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
}

// backends finds the ready endpoints of one service port; slices name ports as
// the service does.
func backends(port *corev1.ServicePort, slices []*discoveryv1.EndpointSlice, node string) []spec.Backend {
	var out []spec.Backend
	seen := map[netip.AddrPort]bool{}
	for _, s := range slices {
		number, ok := slicePort(s, port)
		if !ok {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if !isReady(e) {
				continue
			}
			local := e.NodeName != nil && *e.NodeName == node
			for _, a := range addresses(e.Addresses...) {
				at := netip.AddrPortFrom(a, number)
				if !seen[at] {
					seen[at] = true
					out = append(out, spec.Backend{Addr: at, Local: local})
				}
			}
		}
	}
	return out
}

func slicePort(s *discoveryv1.EndpointSlice, port *corev1.ServicePort) (uint16, bool) {
	for i := range s.Ports {
		p := &s.Ports[i]
		name, proto := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		want := port.Protocol
		if want == "" {
			want = corev1.ProtocolTCP
		}
		if name == port.Name && proto == want && p.Port != nil {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}
