// Package discovery declares endpoint slices.
package discovery

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// EndpointSlice declares discovery.k8s.io/v1 EndpointSlice.
func EndpointSlice() *kind.Kind {
	return &kind.Kind{
		Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Resource: "endpointslices", Namespaced: true,
		Default:        kind.Each(defaultEndpointSlice),
		Validate:       kind.Check(validateEndpointSlice),
		ValidateUpdate: kind.CheckChange(validateEndpointSliceUpdate),
		Columns: columns.Named(
			columns.Text("AddressType", "IPv4, IPv6 or FQDN."),
			columns.Text("Ports", "Ports of every endpoint."),
			columns.Text("Endpoints", "Addresses."),
			columns.Age(),
		),
		Row: kind.RowOf(func(s *discoveryv1.EndpointSlice, now time.Time) []any {
			var addresses []string
			for _, e := range s.Endpoints {
				addresses = append(addresses, e.Addresses...)
			}
			return []any{s.Name, string(s.AddressType), ports(s.Ports), columns.More(addresses, 3), columns.Created(s, now)}
		}),
	}
}

func defaultEndpointSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Name == nil {
			p.Name = new(string)
		}
		if p.Protocol == nil {
			tcp := corev1.ProtocolTCP
			p.Protocol = &tcp
		}
	}
}

func ports(all []discoveryv1.EndpointPort) string {
	if len(all) == 0 {
		return columns.Unset
	}
	var out []string
	for _, p := range all {
		if p.Port == nil {
			out = append(out, "*")
			continue
		}
		out = append(out, strconv.Itoa(int(*p.Port)))
		if len(out) == 3 && len(all) > 3 {
			return fmt.Sprintf("%s + %d more...", strings.Join(out, ","), len(all)-3)
		}
	}
	return strings.Join(out, ",")
}
