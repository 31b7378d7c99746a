package dns

import "net/netip"

// Source knows the cluster. It is asked for every query, concurrently, and answers from memory.
type Source interface {
	// Service returns a Service by its lower-case names.
	Service(namespace, name string) (Service, bool)
	// ServiceByIP returns the Service that has the cluster IP.
	ServiceByIP(addr netip.Addr) (namespace, name string, ok bool)
	// PodByIP returns the pod, not on the node's network, that has the address.
	PodByIP(addr netip.Addr) (Pod, bool)
	// NamespaceExists tells an empty namespace from one that does not exist.
	NamespaceExists(namespace string) bool
}

// Service is what names and addresses are made of. It is not modified once returned.
type Service struct {
	// ClusterIPs is empty for a headless Service and for one of type ExternalName.
	ClusterIPs []netip.Addr
	// ExternalName makes the Service an alias.
	ExternalName string
	// PublishNotReady names endpoints that are not ready too.
	PublishNotReady bool
	Ports           []Port
	Endpoints       []Endpoint
}

// Port is a port of a Service or, with the number that the pod listens on, of an endpoint.
type Port struct {
	Name     string
	Protocol string // "TCP", "UDP" or "SCTP"
	Port     uint16
}

// Endpoint is one address behind a Service.
type Endpoint struct {
	Addr netip.Addr
	// Hostname is empty where the pod has none of its own; its address stands in then.
	Hostname string
	Ports    []Port
	Ready    bool
}

// Pod is what the reverse lookup of a pod's address needs.
type Pod struct {
	Namespace, Name string
	// Hostname and Subdomain are those of the pod's specification; the Subdomain names its headless Service.
	Hostname, Subdomain string
}
