package network

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/datapath/spec"
)

// HostPorts translates the ports that a pod takes on its node to the data path's
// terms, one service a port. They lead to the pod as long as it has an address and
// has not ended; clients of other machines keep their address. Pods on the node's
// own network take their ports themselves.
func HostPorts(pod *corev1.Pod) []spec.Service {
	if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	var ips []string
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	addrs := addresses(ips...)
	var out []spec.Service
	add := func(c *corev1.Container) {
		for i := range c.Ports {
			p := &c.Ports[i]
			if p.HostPort == 0 || len(addrs) == 0 {
				continue
			}
			s := spec.Service{
				// No Service's port is called so.
				Namespace: pod.Namespace, Name: pod.Name, PortName: fmt.Sprintf("hostport/%s/%d", p.HostIP, p.HostPort),
				Protocol: protocol(p.Protocol), Port: uint16(p.HostPort), ExternalLocal: true,
			}
			for _, a := range addrs {
				s.Backends = append(s.Backends, spec.Backend{Addr: netip.AddrPortFrom(a, uint16(p.ContainerPort)), Local: true})
			}
			if ip, err := netip.ParseAddr(p.HostIP); err == nil && !ip.IsUnspecified() {
				s.ExternalIPs = []netip.Addr{ip}
			} else {
				s.NodePort = s.Port // on every address of the node
			}
			out = append(out, s)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}

// takesHostPorts tells whether a pod's spec asks for any.
func takesHostPorts(pod *corev1.Pod) bool {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			for j := range list[i].Ports {
				if list[i].Ports[j].HostPort != 0 {
					return !pod.Spec.HostNetwork
				}
			}
		}
	}
	return false
}
