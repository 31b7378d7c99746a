package endpointslice

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/controller/engine"
)

// group is the endpoints of one address family that have the same ports.
type group struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

func (g *group) key() string { return portsKey(g.family, g.ports) }

func portsKey(f discoveryv1.AddressType, ports []discoveryv1.EndpointPort) string {
	if len(ports) == 0 {
		return string(f)
	}
	b, err := json.Marshal(ports)
	if err != nil {
		return string(f) // plain strings and numbers always marshal
	}
	return string(f) + string(b)
}

// compute is what a service's slices must say. zone tells a node's zone.
func compute(svc *corev1.Service, pods []*corev1.Pod, zone func(node string) string) []*group {
	byKey := map[string]*group{}
	var out []*group
	for _, family := range families(svc) {
		for _, pod := range pods {
			ip := address(pod, family)
			if ip == "" || engine.Finished(pod) || pod.Spec.NodeName == "" {
				continue
			}
			g := &group{family: family, ports: ports(svc, pod)}
			if have := byKey[g.key()]; have != nil {
				g = have
			} else {
				byKey[g.key()] = g
				out = append(out, g)
			}
			g.endpoints = append(g.endpoints, endpoint(svc, pod, ip, zone))
		}
	}
	for _, family := range families(svc) {
		if !slices.ContainsFunc(out, func(g *group) bool { return g.family == family }) {
			out = append(out, &group{family: family}) // one empty slice says: nobody
		}
	}
	for _, g := range out {
		slices.SortFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(a.TargetRef.Name, b.TargetRef.Name) })
	}
	return out
}

func families(svc *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, f := range svc.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			out = append(out, discoveryv1.AddressTypeIPv6)
		} else {
			out = append(out, discoveryv1.AddressTypeIPv4)
		}
	}
	if len(out) == 0 {
		out = append(out, discoveryv1.AddressTypeIPv4)
	}
	return out
}

func address(pod *corev1.Pod, family discoveryv1.AddressType) string {
	ips := pod.Status.PodIPs
	if len(ips) == 0 && pod.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is6() == (family == discoveryv1.AddressTypeIPv6) {
			return ip.IP
		}
	}
	return ""
}

func endpoint(svc *corev1.Service, pod *corev1.Pod, ip string, zone func(string) string) discoveryv1.Endpoint {
	ready := engine.Ready(pod)
	terminating := pod.DeletionTimestamp != nil
	serving := ready || svc.Spec.PublishNotReadyAddresses
	usable := svc.Spec.PublishNotReadyAddresses || (ready && !terminating)
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		Conditions: discoveryv1.EndpointConditions{Ready: &usable, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	node := pod.Spec.NodeName
	e.NodeName = &node
	if z := zone(node); z != "" {
		e.Zone = &z
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		host := pod.Spec.Hostname
		e.Hostname = &host
	}
	return e
}

// ports resolves a service's target ports for a pod; a name that the pod does
// not have is left out.
func ports(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	out := []discoveryv1.EndpointPort{}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		number, ok := targetPort(pod, p)
		if !ok {
			continue
		}
		name, protocol := p.Name, p.Protocol
		if protocol == "" {
			protocol = corev1.ProtocolTCP
		}
		out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: p.AppProtocol})
	}
	return out
}

func targetPort(pod *corev1.Pod, p *corev1.ServicePort) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		if n := p.TargetPort.IntVal; n != 0 {
			return n, true
		}
		return p.Port, true
	}
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, cp := range c.Ports {
			if cp.Name == p.TargetPort.StrVal && (cp.Protocol == p.Protocol || (cp.Protocol == "" && p.Protocol == corev1.ProtocolTCP)) {
				return cp.ContainerPort, true
			}
		}
	}
	return 0, false
}

// perSlice is the most endpoints of one slice.
const perSlice = 100

// pack distributes groups over slices: an endpoint stays in the slice that has
// its address, new ones fill the room, and what is left over gets new slices.
// Slices that end up empty are deleted.
func pack(have []*discoveryv1.EndpointSlice, want []*group) (create, update, remove []*discoveryv1.EndpointSlice) {
	byKey := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range have {
		k := portsKey(s.AddressType, s.Ports)
		byKey[k] = append(byKey[k], s)
	}
	for _, g := range want {
		mine := byKey[g.key()]
		delete(byKey, g.key())
		c, u, r := g.pack(mine)
		create, update, remove = append(create, c...), append(update, u...), append(remove, r...)
	}
	for _, rest := range byKey {
		remove = append(remove, rest...)
	}
	return create, update, remove
}

func (g *group) pack(have []*discoveryv1.EndpointSlice) (create, update, remove []*discoveryv1.EndpointSlice) {
	pending := map[string]discoveryv1.Endpoint{}
	var order []string
	for _, e := range g.endpoints {
		pending[e.Addresses[0]] = e
		order = append(order, e.Addresses[0])
	}
	kept := make([][]discoveryv1.Endpoint, len(have))
	for i, s := range have {
		for _, e := range s.Endpoints {
			if w, ok := pending[e.Addresses[0]]; ok && len(kept[i]) < perSlice {
				kept[i] = append(kept[i], w)
				delete(pending, e.Addresses[0])
			}
		}
	}
	var rest []discoveryv1.Endpoint
	for _, a := range order {
		if e, ok := pending[a]; ok {
			rest = append(rest, e)
			delete(pending, a)
		}
	}
	for i := range have {
		n := min(len(rest), perSlice-len(kept[i]))
		kept[i] = append(kept[i], rest[:n]...)
		rest = rest[n:]
	}
	for i, s := range have {
		if len(kept[i]) == 0 && (len(g.endpoints) > 0 || i > 0) {
			remove = append(remove, s)
			continue
		}
		next := s.DeepCopy()
		next.Endpoints = kept[i]
		update = append(update, next)
	}
	for len(rest) > 0 || (len(have) == 0 && len(g.endpoints) == 0 && len(create) == 0) {
		n := min(len(rest), perSlice)
		create = append(create, &discoveryv1.EndpointSlice{AddressType: g.family, Ports: g.ports, Endpoints: rest[:n:n]})
		rest = rest[n:]
	}
	return create, update, remove
}

func isV6(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && a.Is6()
}
