package cmd

import (
	"context"
	"net/netip"
	"strconv"

	"knarr.dev/knarr/container"
	"knarr.dev/knarr/datapath"
	"knarr.dev/knarr/datapath/spec"
)

// hostPorts lets the data path serve the host ports of a runtime that runs alone.
// In a cluster the agent tells the data path of them, with all services.
func hostPorts(d *datapath.Datapath) container.Ports {
	return func(ctx context.Context, list []container.HostPort) error {
		var state spec.State
		for _, p := range list {
			s := spec.Service{
				Namespace: "hostport", Name: p.Pod, PortName: p.Host.String() + "/" + strconv.Itoa(int(p.HostPort)),
				Protocol: protocols[p.Protocol], Port: p.HostPort, ExternalLocal: true,
			}
			for _, a := range p.Pods {
				s.Backends = append(s.Backends, spec.Backend{Addr: a, Local: true})
			}
			if p.Host.IsValid() {
				s.ExternalIPs = []netip.Addr{p.Host}
			} else {
				s.NodePort = s.Port
			}
			state.Services = append(state.Services, s)
		}
		return d.Set(ctx, state)
	}
}

var protocols = map[string]spec.Protocol{"TCP": spec.TCP, "UDP": spec.UDP, "SCTP": spec.SCTP}
