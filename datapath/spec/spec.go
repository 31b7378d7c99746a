// Package spec describes the desired state of a node's service datapath as plain values.
//
// Nothing here does I/O or knows of the kernel: a State is computed by whoever watches the cluster, handed whole to
// the datapath, and compared there with what the kernel holds. Values are immutable once handed over.
package spec

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Protocol is a transport protocol, by its IANA number.
type Protocol uint8

// The protocols that a Kubernetes Service may name.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the protocol as Kubernetes spells it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// ErrUnsupported marks a service that is valid but that this datapath cannot carry.
var ErrUnsupported = errors.New("not supported by the datapath")

// MaxAffinity is the longest session affinity that Kubernetes permits.
const MaxAffinity = 24 * time.Hour

// State is everything that a node has to translate. The order of services carries no meaning.
type State struct {
	Services []Service
}

// Service is one port of a Kubernetes Service.
type Service struct {
	Namespace, Name string
	// PortName is empty where the Service has a single unnamed port.
	PortName string

	// IPs are the cluster IPs, reachable from pods and from the node.
	IPs []netip.Addr
	// ExternalIPs are external and load balancer addresses, reachable from other machines too.
	ExternalIPs []netip.Addr

	Protocol Protocol
	Port     uint16
	// NodePort is zero for none.
	NodePort uint16

	// Affinity is the ClientIP session affinity timeout, zero for none. Whole seconds.
	Affinity time.Duration
	// InternalLocal is internalTrafficPolicy Local: cluster IPs lead to backends of this node alone.
	InternalLocal bool
	// ExternalLocal is externalTrafficPolicy Local: clients outside the cluster reach backends of this node alone
	// and keep their source address. Clients on the node and in pods still reach all backends, as Kubernetes has it.
	ExternalLocal bool

	// Backends are those that may receive new connections. Of either family; each frontend address uses those of
	// its own. The order carries no meaning.
	Backends []Backend
}

// Backend is one address that serves a Service port.
type Backend struct {
	Addr netip.AddrPort
	// Local says that the backend runs on this node.
	Local bool
}

// Key names a service port. It stays the same when addresses, numbers or backends change.
type Key struct {
	Namespace, Name, PortName string
	Protocol                  Protocol
}

// Key returns the identity of the service port.
func (s *Service) Key() Key { return Key{s.Namespace, s.Name, s.PortName, s.Protocol} }

// String returns namespace/name:port/protocol.
func (k Key) String() string {
	return fmt.Sprintf("%s/%s:%s/%s", k.Namespace, k.Name, k.PortName, k.Protocol)
}

// Compare orders keys; where two services claim one frontend, the lesser key has it.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name),
		cmp.Compare(k.PortName, o.PortName), cmp.Compare(k.Protocol, o.Protocol))
}

// Equal reports whether both describe the same translation.
func (s *Service) Equal(o *Service) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.PortName == o.PortName &&
		s.Protocol == o.Protocol && s.Port == o.Port && s.NodePort == o.NodePort && s.Affinity == o.Affinity &&
		s.InternalLocal == o.InternalLocal && s.ExternalLocal == o.ExternalLocal &&
		slices.Equal(s.IPs, o.IPs) && slices.Equal(s.ExternalIPs, o.ExternalIPs) &&
		slices.Equal(s.Backends, o.Backends)
}

// External reports whether clients outside the cluster may reach the service.
func (s *Service) External() bool { return s.NodePort != 0 || len(s.ExternalIPs) > 0 }

// Validate reports what is wrong with the service, or ErrUnsupported where nothing is but the datapath cannot do it.
func (s *Service) Validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("service %s: "+format, append([]any{s.Key()}, args...)...)
	}
	switch s.Protocol {
	case TCP, UDP:
	case SCTP:
		return fail("SCTP is %w: sockets of this protocol cannot be redirected", ErrUnsupported)
	default:
		return fail("unknown protocol number %d", uint8(s.Protocol))
	}
	if s.Namespace == "" || s.Name == "" {
		return fail("namespace and name are required")
	}
	if s.Port == 0 && len(s.IPs)+len(s.ExternalIPs) > 0 {
		return fail("addresses without a port")
	}
	if s.Affinity < 0 || s.Affinity > MaxAffinity || s.Affinity%time.Second != 0 {
		return fail("session affinity of %v is not a whole number of seconds from 0 to %v", s.Affinity, MaxAffinity)
	}
	for _, list := range [2][]netip.Addr{s.IPs, s.ExternalIPs} {
		for _, ip := range list {
			if !ip.IsValid() || ip.IsUnspecified() || ip.Is4In6() || ip.Zone() != "" {
				return fail("%q is no address that can be served", ip)
			}
		}
	}
	for _, b := range s.Backends {
		ip := b.Addr.Addr()
		if !b.Addr.IsValid() || ip.IsUnspecified() || ip.Is4In6() || ip.Zone() != "" || b.Addr.Port() == 0 {
			return fail("%q is no backend address", b.Addr)
		}
	}
	return nil
}
