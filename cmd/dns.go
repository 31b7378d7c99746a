package cmd

import (
	"net/netip"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/dns"
)

// dnsSource answers the DNS server from the API's caches. Two small indexes, by
// address, are kept by events; all else is looked up by name.
type dnsSource struct {
	services, slices, namespaces client.Cache

	mu        sync.RWMutex
	serviceIP map[netip.Addr]client.Key
	podIP     map[netip.Addr]*corev1.Pod
}

// newDNSSource returns a source and what ends its watches.
func newDNSSource(c client.Interface) (*dnsSource, func()) {
	s := &dnsSource{
		services: c.Cache(client.Services, ""), slices: c.Cache(client.EndpointSlices, ""), namespaces: c.Cache(client.Namespaces, ""),
		serviceIP: map[netip.Addr]client.Key{}, podIP: map[netip.Addr]*corev1.Pod{},
	}
	stopServices := s.services.Subscribe(s.serviceChanged)
	stopPods := c.Cache(client.Pods, "").Subscribe(s.podChanged)
	return s, func() { stopServices(); stopPods() }
}

func (s *dnsSource) serviceChanged(e client.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := e.Old.(*corev1.Service); ok {
		for _, ip := range old.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil {
				delete(s.serviceIP, a)
			}
		}
	}
	svc, ok := e.Object.(*corev1.Service)
	if !ok || e.Type == client.Deleted {
		return
	}
	for _, ip := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			s.serviceIP[a] = client.Key{Namespace: svc.Namespace, Name: svc.Name}
		}
	}
}

func (s *dnsSource) podChanged(e client.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := e.Old.(*corev1.Pod); ok {
		for _, ip := range old.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && s.podIP[a] != nil && s.podIP[a].UID == old.UID {
				delete(s.podIP, a)
			}
		}
	}
	pod, ok := e.Object.(*corev1.Pod)
	if !ok || e.Type == client.Deleted || pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return
	}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			s.podIP[a] = pod
		}
	}
}

// Service implements dns.Source.
func (s *dnsSource) Service(namespace, name string) (dns.Service, bool) {
	svc, ok := client.Cached[*corev1.Service](s.services, namespace, name)
	if !ok {
		return dns.Service{}, false
	}
	out := dns.Service{PublishNotReady: svc.Spec.PublishNotReadyAddresses}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		out.ExternalName = svc.Spec.ExternalName
		return out, true
	}
	for _, ip := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			out.ClusterIPs = append(out.ClusterIPs, a)
		}
	}
	for _, p := range svc.Spec.Ports {
		out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port)})
	}
	if len(out.ClusterIPs) == 0 { // headless: its endpoints are its addresses
		out.Endpoints = s.endpoints(namespace, name)
	}
	return out, true
}

func (s *dnsSource) endpoints(namespace, name string) []dns.Endpoint {
	var out []dns.Endpoint
	s.slices.List(namespace, labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name}), func(o client.Object) bool {
		slice, ok := o.(*discoveryv1.EndpointSlice)
		if !ok {
			return true
		}
		var ports []dns.Port
		for _, p := range slice.Ports {
			if p.Port != nil {
				port := dns.Port{Port: uint16(*p.Port), Protocol: string(corev1.ProtocolTCP)}
				if p.Name != nil {
					port.Name = *p.Name
				}
				if p.Protocol != nil {
					port.Protocol = string(*p.Protocol)
				}
				ports = append(ports, port)
			}
		}
		for _, e := range slice.Endpoints {
			for _, ip := range e.Addresses {
				if a, err := netip.ParseAddr(ip); err == nil {
					ep := dns.Endpoint{Addr: a, Ports: ports, Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
					if e.Hostname != nil {
						ep.Hostname = strings.ToLower(*e.Hostname)
					}
					out = append(out, ep)
				}
			}
		}
		return true
	})
	return out
}

// ServiceByIP implements dns.Source.
func (s *dnsSource) ServiceByIP(addr netip.Addr) (namespace, name string, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	k, ok := s.serviceIP[addr]
	return k.Namespace, k.Name, ok
}

// PodByIP implements dns.Source.
func (s *dnsSource) PodByIP(addr netip.Addr) (dns.Pod, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pod, ok := s.podIP[addr]
	if !ok {
		return dns.Pod{}, false
	}
	return dns.Pod{Namespace: pod.Namespace, Name: pod.Name, Hostname: pod.Spec.Hostname, Subdomain: pod.Spec.Subdomain}, true
}

// NamespaceExists implements dns.Source.
func (s *dnsSource) NamespaceExists(ns string) bool {
	_, ok := s.namespaces.Get("", ns)
	return ok
}
