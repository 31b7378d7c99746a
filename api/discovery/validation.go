package discovery

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

// Greatest sizes of a slice.
const (
	maxEndpoints = 1000
	maxPorts     = 20000
	maxAddresses = 100
)

func validateEndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	errs := check.OneOf(field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	all := field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		return append(errs, field.TooMany(all, len(s.Endpoints), maxEndpoints))
	}
	for i := range s.Endpoints {
		errs = append(errs, checkEndpoint(all.Index(i), &s.Endpoints[i], s.AddressType)...)
	}
	all = field.NewPath("ports")
	if len(s.Ports) > maxPorts {
		return append(errs, field.TooMany(all, len(s.Ports), maxPorts))
	}
	names := map[string]bool{}
	for i, p := range s.Ports {
		at := all.Index(i)
		if p.Name != nil {
			if *p.Name != "" {
				errs = append(errs, check.DNSLabel(at.Child("name"), *p.Name)...)
			}
			if names[*p.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), *p.Name))
			}
			names[*p.Name] = true
		}
		if p.Protocol != nil {
			errs = append(errs, check.OneOf(at.Child("protocol"), *p.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
		}
		if p.Port != nil {
			errs = append(errs, check.Port(at.Child("port"), *p.Port)...)
		}
		if p.AppProtocol != nil {
			errs = append(errs, check.QualifiedName(at.Child("appProtocol"), *p.AppProtocol)...)
		}
	}
	return errs
}

func checkEndpoint(at *field.Path, e *discoveryv1.Endpoint, t discoveryv1.AddressType) field.ErrorList {
	var errs field.ErrorList
	if len(e.Addresses) == 0 {
		errs = append(errs, field.Required(at.Child("addresses"), "must contain at least 1 address"))
	} else if len(e.Addresses) > maxAddresses {
		errs = append(errs, field.TooMany(at.Child("addresses"), len(e.Addresses), maxAddresses))
	}
	all := at.Child("addresses")
	for i, a := range e.Addresses {
		at := at.Child("addresses").Index(i)
		if t == discoveryv1.AddressTypeFQDN {
			errs = append(errs, validation.IsFullyQualifiedDomainName(at, a)...)
		} else {
			bad := validation.IsValidIPForLegacyField(at, a, false, nil)
			if addr, err := netip.ParseAddr(a); err == nil && addr.Is4() != (t == discoveryv1.AddressTypeIPv4) && (t == discoveryv1.AddressTypeIPv4 || t == discoveryv1.AddressTypeIPv6) {
				bad = append(bad, field.Invalid(all, a, fmt.Sprintf("must be an %s address", t)))
			}
			errs = append(append(errs, bad...), check.Reachable(at, a)...)
		}
	}
	if e.NodeName != nil {
		errs = append(errs, check.DNSSubdomain(at.Child("nodeName"), *e.NodeName)...)
	}
	if e.Hostname != nil {
		errs = append(errs, check.DNSLabel(at.Child("hostname"), *e.Hostname)...)
	}
	return errs
}

func validateEndpointSliceUpdate(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	checked := s
	if s.AddressType != old.AddressType {
		// One fault, not one for each address.
		checked = s.DeepCopy()
		checked.AddressType = old.AddressType
	}
	return append(validateEndpointSlice(checked), check.Immutable(field.NewPath("addressType"), s.AddressType, old.AddressType)...)
}
