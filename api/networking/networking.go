// Package networking declares ingresses, network policies and the address kinds
// of the group networking.k8s.io.
package networking

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const group = "networking.k8s.io"

// Ingress declares networking.k8s.io/v1 Ingress.
func Ingress() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "Ingress", Resource: "ingresses", ShortNames: []string{"ing"}, Namespaced: true, Storage: "ingress", HasStatus: true,
		Validate:       kind.Check(validateIngress),
		ValidateStatus: kind.CheckChange(validateIngressStatus),
		Columns: columns.Named(
			columns.Text("Class", "The class of controller that serves it."),
			columns.Text("Hosts", "Hosts that are served."),
			columns.Text("Address", "Where it is reached."),
			columns.Text("Ports", "Ports that are open."),
			columns.Age(),
		),
		Row: kind.RowOf(ingressRow),
	}
}

func ingressRow(i *networkingv1.Ingress, now time.Time) []any {
	class := columns.None
	if c := i.Spec.IngressClassName; c != nil {
		class = *c
	} else if c := i.Annotations["kubernetes.io/ingress.class"]; c != "" {
		class = c
	}
	var hosts, addresses []string
	for _, r := range i.Spec.Rules {
		if r.Host != "" {
			hosts = append(hosts, r.Host)
		}
	}
	hostCell := "*"
	if len(hosts) > 0 {
		hostCell = columns.More(hosts, 3)
	}
	for _, a := range i.Status.LoadBalancer.Ingress {
		if v := columns.Or(a.IP, a.Hostname); v != "" {
			addresses = append(addresses, v)
		}
	}
	ports := "80"
	if len(i.Spec.TLS) > 0 {
		ports = "80, 443"
	}
	return []any{i.Name, class, hostCell, strings.Join(addresses, ","), ports, columns.Created(i, now)}
}

// IngressClass declares networking.k8s.io/v1 IngressClass.
func IngressClass() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "IngressClass", Resource: "ingressclasses",
		Default: kind.Each(func(c *networkingv1.IngressClass) {
			if p := c.Spec.Parameters; p != nil && p.Scope == nil {
				cluster := networkingv1.IngressClassParametersReferenceScopeCluster
				p.Scope = &cluster
			}
		}),
		Validate:       kind.Check(validateIngressClass),
		ValidateUpdate: kind.CheckChange(validateIngressClassUpdate),
		Columns: columns.Named(
			columns.Text("Controller", "The controller that serves it."),
			columns.Text("Parameters", "Where its configuration is."),
			columns.Age(),
		),
		Row: kind.RowOf(func(c *networkingv1.IngressClass, now time.Time) []any {
			parameters := columns.None
			if p := c.Spec.Parameters; p != nil {
				parameters = p.Kind
				if p.APIGroup != nil {
					parameters += "." + *p.APIGroup
				}
				parameters += "/" + p.Name
			}
			return []any{c.Name, c.Spec.Controller, parameters, columns.Created(c, now)}
		}),
	}
}

// NetworkPolicy declares networking.k8s.io/v1 NetworkPolicy.
func NetworkPolicy() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "NetworkPolicy", Resource: "networkpolicies", ShortNames: []string{"netpol"}, Namespaced: true,
		Default:  kind.Each(defaultNetworkPolicy),
		Validate: kind.Check(validateNetworkPolicy),
		Columns:  columns.Named(columns.Text("Pod-Selector", "Pods that it applies to."), columns.Age()),
		Row: kind.RowOf(func(p *networkingv1.NetworkPolicy, now time.Time) []any {
			return []any{p.Name, columns.Selector(&p.Spec.PodSelector), columns.Created(p, now)}
		}),
	}
}

// defaultNetworkPolicy: a policy is always about ingress, and about egress if it
// has egress rules.
func defaultNetworkPolicy(p *networkingv1.NetworkPolicy) {
	for i := range p.Spec.Ingress {
		defaultPolicyPorts(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		defaultPolicyPorts(p.Spec.Egress[i].Ports)
	}
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func defaultPolicyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		if ports[i].Protocol == nil {
			tcp := corev1.ProtocolTCP
			ports[i].Protocol = &tcp
		}
	}
}

// IPAddress declares networking.k8s.io/v1 IPAddress.
func IPAddress() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "IPAddress", Resource: "ipaddresses", ShortNames: []string{"ip"}, NoGeneration: true,
		ValidName:      ipName,
		Validate:       kind.Check(validateIPAddress),
		ValidateUpdate: kind.CheckChange(validateIPAddressUpdate),
		Columns:        columns.Named(columns.Text("ParentRef", "The object that the address belongs to.")),
		Row: kind.RowOf(func(a *networkingv1.IPAddress, _ time.Time) []any {
			ref := columns.None
			if r := a.Spec.ParentRef; r != nil {
				parts := []string{}
				for _, p := range []string{r.Resource + suffix(".", r.Group), r.Namespace, r.Name} {
					if p != "" {
						parts = append(parts, p)
					}
				}
				ref = strings.Join(parts, "/")
			}
			return []any{a.Name, ref}
		}),
	}
}

func suffix(sep, s string) string {
	if s == "" {
		return ""
	}
	return sep + s
}

// ServiceCIDR declares networking.k8s.io/v1 ServiceCIDR.
func ServiceCIDR() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ServiceCIDR", Resource: "servicecidrs", HasStatus: true, NoGeneration: true,
		Validate:       kind.Check(validateServiceCIDR),
		ValidateUpdate: kind.CheckChange(validateServiceCIDRUpdate),
		Columns:        columns.Named(columns.Text("CIDRs", "Ranges of service addresses."), columns.Age()),
		Row: kind.RowOf(func(c *networkingv1.ServiceCIDR, now time.Time) []any {
			return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), columns.Created(c, now)}
		}),
	}
}
