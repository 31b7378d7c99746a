package networking

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func validateIngress(i *networkingv1.Ingress) field.ErrorList {
	at, s := field.NewPath("spec"), &i.Spec
	var errs field.ErrorList
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		errs = append(errs, field.Invalid(at, s.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if s.IngressClassName != nil {
		errs = append(errs, check.DNSSubdomain(at.Child("ingressClassName"), *s.IngressClassName)...)
	}
	if s.DefaultBackend != nil {
		errs = append(errs, checkBackend(at.Child("defaultBackend"), s.DefaultBackend)...)
	}
	for k, r := range s.Rules {
		at := at.Child("rules").Index(k)
		errs = append(errs, checkHost(at.Child("host"), r.Host)...)
		if r.HTTP == nil {
			continue
		}
		at = at.Child("http", "paths")
		if len(r.HTTP.Paths) == 0 {
			errs = append(errs, field.Required(at, ""))
		}
		for n := range r.HTTP.Paths {
			p, at := &r.HTTP.Paths[n], at.Index(n)
			if p.PathType == nil {
				errs = append(errs, field.Required(at.Child("pathType"), "pathType must be specified"))
			} else {
				errs = append(errs, check.OneOf(at.Child("pathType"), *p.PathType, networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix)...)
				if *p.PathType != networkingv1.PathTypeImplementationSpecific && !strings.HasPrefix(p.Path, "/") || p.Path != "" && !strings.HasPrefix(p.Path, "/") {
					errs = append(errs, field.Invalid(at.Child("path"), p.Path, "must be an absolute path"))
				}
			}
			errs = append(errs, checkBackend(at.Child("backend"), &p.Backend)...)
		}
	}
	for k, t := range s.TLS {
		for n, h := range t.Hosts {
			errs = append(errs, checkHost(at.Child("tls").Index(k).Child("hosts").Index(n), h)...)
		}
		if t.SecretName != "" {
			errs = append(errs, check.DNSSubdomain(at.Child("tls").Index(k).Child("secretName"), t.SecretName)...)
		}
	}
	return errs
}

func checkHost(at *field.Path, host string) field.ErrorList {
	switch {
	case host == "":
		return nil
	case strings.Contains(host, "*"):
		return check.Each(at, host, validation.IsWildcardDNS1123Subdomain(host))
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return field.ErrorList{field.Invalid(at, host, "must be a DNS name, not an IP address")}
	}
	return check.DNSSubdomain(at, host)
}

func checkBackend(at *field.Path, b *networkingv1.IngressBackend) field.ErrorList {
	var errs field.ErrorList
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(at, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		errs = append(errs, check.Required(at.Child("resource", "kind"), b.Resource.Kind)...)
		return append(errs, check.Required(at.Child("resource", "name"), b.Resource.Name)...)
	case b.Service == nil:
		return field.ErrorList{field.Invalid(at, "", "resource or service backend is required")}
	}
	backend := at
	at = at.Child("service")
	if b.Service.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	} else {
		errs = append(errs, check.DNSLabel(at.Child("name"), b.Service.Name)...)
	}
	switch p := b.Service.Port; {
	case p.Name != "" && p.Number != 0:
		errs = append(errs, field.Invalid(backend, "", "cannot set both port name & port number"))
	case p.Name != "":
		errs = append(errs, check.Each(at.Child("port", "name"), p.Name, validation.IsValidPortName(p.Name))...)
	case p.Number != 0:
		errs = append(errs, check.Port(at.Child("port", "number"), p.Number)...)
	default:
		errs = append(errs, field.Required(backend, "port name or number is required"))
	}
	return errs
}

func validateIngressClass(c *networkingv1.IngressClass) field.ErrorList {
	at := field.NewPath("spec")
	var errs field.ErrorList
	if c.Spec.Controller == "" {
		errs = append(errs, field.Required(at.Child("controller"), ""))
	} else {
		errs = append(errs, validation.IsDomainPrefixedPath(at.Child("controller"), c.Spec.Controller)...)
	}
	if p := c.Spec.Parameters; p != nil {
		at := at.Child("parameters")
		errs = append(errs, check.Required(at.Child("kind"), p.Kind)...)
		errs = append(errs, check.Required(at.Child("name"), p.Name)...)
		errs = append(errs, checkParametersScope(at, p)...)
	}
	return errs
}

func checkParametersScope(at *field.Path, p *networkingv1.IngressClassParametersReference) field.ErrorList {
	if p.Scope == nil {
		return field.ErrorList{field.Required(at.Child("scope"), "")}
	}
	const cluster, namespaced = networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace
	switch errs := check.Exactly(at.Child("scope"), *p.Scope, cluster, namespaced); {
	case len(errs) > 0:
		return errs
	case *p.Scope == namespaced && (p.Namespace == nil || *p.Namespace == ""):
		return field.ErrorList{field.Required(at.Child("namespace"), "`parameters.scope` is set to 'Namespace'")}
	case *p.Scope == namespaced:
		return check.DNSLabel(at.Child("namespace"), *p.Namespace)
	case p.Namespace != nil:
		return field.ErrorList{field.Forbidden(at.Child("namespace"), "`parameters.scope` is set to 'Cluster'")}
	}
	return nil
}

func validateIngressClassUpdate(c, old *networkingv1.IngressClass) field.ErrorList {
	return append(validateIngressClass(c), check.Immutable(field.NewPath("spec", "controller"), c.Spec.Controller, old.Spec.Controller)...)
}

func validateNetworkPolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	at, s := field.NewPath("spec"), &p.Spec
	errs := check.Selector(at.Child("podSelector"), &s.PodSelector)
	for i, r := range s.Ingress {
		at := at.Child("ingress").Index(i)
		errs = append(errs, checkPolicyPorts(at.Child("ports"), r.Ports)...)
		errs = append(errs, checkPeers(at.Child("from"), r.From)...)
	}
	for i, r := range s.Egress {
		at := at.Child("egress").Index(i)
		errs = append(errs, checkPolicyPorts(at.Child("ports"), r.Ports)...)
		errs = append(errs, checkPeers(at.Child("to"), r.To)...)
	}
	if len(s.PolicyTypes) > 2 {
		return append(errs, field.Invalid(at.Child("policyTypes"), &s.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range s.PolicyTypes {
		errs = append(errs, check.Exactly(at.Child("policyTypes").Index(i), t, networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)...)
	}
	return errs
}

func checkPolicyPorts(at *field.Path, ports []networkingv1.NetworkPolicyPort) field.ErrorList {
	var errs field.ErrorList
	for i, p := range ports {
		at := at.Index(i)
		if p.Protocol != nil {
			errs = append(errs, check.OneOf(at.Child("protocol"), *p.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
		}
		if p.Port == nil {
			if p.EndPort != nil {
				errs = append(errs, field.Required(at.Child("port"), "must be specified when `endPort` is specified"))
			}
			continue
		}
		errs = append(errs, check.PortNumberOrName(at.Child("port"), *p.Port)...)
		if p.EndPort == nil {
			continue
		}
		if p.Port.Type == intstr.String {
			errs = append(errs, field.Invalid(at.Child("endPort"), *p.EndPort, "may not be specified when `port` is non-numeric"))
		} else if *p.EndPort < p.Port.IntVal {
			errs = append(errs, field.Invalid(at.Child("endPort"), p.Port.IntVal, "must be greater than or equal to `port`"))
		}
		errs = append(errs, check.Port(at.Child("endPort"), *p.EndPort)...)
	}
	return errs
}

func checkPeers(at *field.Path, peers []networkingv1.NetworkPolicyPeer) field.ErrorList {
	var errs field.ErrorList
	for i, p := range peers {
		at := at.Index(i)
		errs = append(errs, check.Selector(at.Child("podSelector"), p.PodSelector)...)
		errs = append(errs, check.Selector(at.Child("namespaceSelector"), p.NamespaceSelector)...)
		selected := p.PodSelector != nil || p.NamespaceSelector != nil
		switch {
		case p.IPBlock == nil && !selected:
			errs = append(errs, field.Required(at, "must specify a peer"))
		case p.IPBlock != nil && selected:
			errs = append(errs, field.Forbidden(at, "may not specify both ipBlock and another peer"))
		case p.IPBlock != nil:
			errs = append(errs, checkBlock(at.Child("ipBlock"), p.IPBlock)...)
		}
	}
	return errs
}

func checkBlock(at *field.Path, b *networkingv1.IPBlock) field.ErrorList {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(at.Child("cidr"), "")}
	}
	errs := validation.IsValidCIDRForLegacyField(at.Child("cidr"), b.CIDR, false, nil)
	whole, err := netip.ParsePrefix(b.CIDR)
	for i, e := range b.Except {
		at := at.Child("except").Index(i)
		errs = append(errs, validation.IsValidCIDRForLegacyField(at, e, false, nil)...)
		if part, partErr := netip.ParsePrefix(e); err == nil && partErr == nil && (part.Bits() <= whole.Bits() || !whole.Contains(part.Addr())) {
			errs = append(errs, field.Invalid(at, e, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}

// ipName wants an address in its canonical form: it is the object's identity.
func ipName(name string, _ bool) []string {
	if a, err := netip.ParseAddr(name); err != nil {
		return []string{"must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"}
	} else if a.String() != name {
		return []string{fmt.Sprintf("must be in canonical form (%q)", a.String())}
	}
	return nil
}

func validateIPAddress(a *networkingv1.IPAddress) field.ErrorList {
	at := field.NewPath("spec", "parentRef")
	if a.Spec.ParentRef == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	errs := check.Required(at.Child("resource"), a.Spec.ParentRef.Resource)
	return append(errs, check.Required(at.Child("name"), a.Spec.ParentRef.Name)...)
}

func validateIPAddressUpdate(a, old *networkingv1.IPAddress) field.ErrorList {
	return check.Immutable(field.NewPath("spec", "parentRef"), a.Spec.ParentRef, old.Spec.ParentRef)
}

func validateServiceCIDR(c *networkingv1.ServiceCIDR) field.ErrorList {
	at := field.NewPath("spec", "cidrs")
	switch n := len(c.Spec.CIDRs); {
	case n == 0:
		return field.ErrorList{field.Required(at, "at least one CIDR required")}
	case n > 2:
		return field.ErrorList{field.Invalid(at, c.Spec.CIDRs, "may only hold up to 2 values")}
	}
	var errs field.ErrorList
	for i, s := range c.Spec.CIDRs {
		errs = append(errs, validation.IsValidCIDR(at.Index(i), s)...)
	}
	if len(c.Spec.CIDRs) == 2 && len(errs) == 0 {
		a, b := netip.MustParsePrefix(c.Spec.CIDRs[0]), netip.MustParsePrefix(c.Spec.CIDRs[1])
		if a.Addr().Is4() == b.Addr().Is4() {
			errs = append(errs, field.Invalid(at, c.Spec.CIDRs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
		}
	}
	return errs
}

// validateServiceCIDRUpdate lets a range of the other family be added.
func validateServiceCIDRUpdate(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	errs, at := validateServiceCIDR(c), field.NewPath("spec", "cidrs")
	if len(c.Spec.CIDRs) < len(old.Spec.CIDRs) {
		return append(errs, check.Immutable(at, c.Spec.CIDRs, old.Spec.CIDRs)...)
	}
	for i, was := range old.Spec.CIDRs {
		errs = append(errs, check.Immutable(at.Index(i), c.Spec.CIDRs[i], was)...)
	}
	return errs
}

func validateIngressStatus(i, _ *networkingv1.Ingress) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("status", "loadBalancer", "ingress")
	for n, in := range i.Status.LoadBalancer.Ingress {
		errs = append(errs, check.BalancerAddress(at.Index(n), in.IP, in.Hostname)...)
	}
	return errs
}
