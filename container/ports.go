package container

import (
	"context"
	"net/netip"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// HostPort leads from a port of the host to one of a pod.
type HostPort struct {
	Pod      string     // the sandbox
	Protocol string     // TCP, UDP or SCTP
	Host     netip.Addr // invalid: every address of the host
	HostPort uint16
	Pods     []netip.AddrPort
}

// Ports makes the host's ports lead to pods. It is given all of them each time
// and ends those that are no longer listed.
type Ports func(context.Context, []HostPort) error

// mapPorts tells Config.Ports of all ready pods, with one that is about to be
// (nil: none). Calls are serialised, so that a later one never loses to an earlier one.
func (s *Server) mapPorts(ctx context.Context, coming *pod) error {
	if s.cfg.Ports == nil {
		return nil
	}
	s.ports.Lock()
	defer s.ports.Unlock()
	pods := s.listPods()
	if coming != nil {
		pods = append(pods, coming)
	}
	var all []HostPort
	for _, p := range pods {
		all = append(all, p.hostPorts()...)
	}
	return s.cfg.Ports(ctx, all)
}

// hostPorts are those that the pod takes on the host. A pod on the host's own
// network takes them itself.
func (p *pod) hostPorts() []HostPort {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if !p.Ready || p.spaces.Network == "" {
		return nil
	}
	var list []HostPort
	for _, m := range p.config().GetPortMappings() {
		if m.GetHostPort() <= 0 {
			continue
		}
		h := HostPort{Pod: p.ID, Protocol: runtimeapi.Protocol_name[int32(m.GetProtocol())], HostPort: uint16(m.GetHostPort())}
		if ip, err := netip.ParseAddr(m.GetHostIp()); err == nil && !ip.IsUnspecified() {
			h.Host = ip
		}
		for _, text := range p.IPs {
			if ip, err := netip.ParseAddr(text); err == nil {
				h.Pods = append(h.Pods, netip.AddrPortFrom(ip, uint16(m.GetContainerPort())))
			}
		}
		list = append(list, h)
	}
	return list
}
