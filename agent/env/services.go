package env

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Services returns the variables {SVC}_SERVICE_HOST, {SVC}_SERVICE_PORT and the
// Docker-link style ones for each service that has a cluster address.
func Services(services []*corev1.Service) map[string]string {
	vars := map[string]string{}
	for _, s := range services {
		ip := s.Spec.ClusterIP
		if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		name := variable(s.Name)
		vars[name+"_SERVICE_HOST"] = ip
		vars[name+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
		for i, p := range s.Spec.Ports {
			port := strconv.Itoa(int(p.Port))
			if p.Name != "" {
				vars[name+"_SERVICE_PORT_"+variable(p.Name)] = port
			}
			proto := p.Protocol
			if proto == "" {
				proto = corev1.ProtocolTCP
			}
			url := fmt.Sprintf("%s://%s", strings.ToLower(string(proto)), net.JoinHostPort(ip, port))
			if i == 0 {
				vars[name+"_PORT"] = url
			}
			prefix := fmt.Sprintf("%s_PORT_%s_%s", name, port, strings.ToUpper(string(proto)))
			vars[prefix] = url
			vars[prefix+"_PROTO"] = strings.ToLower(string(proto))
			vars[prefix+"_PORT"] = port
			vars[prefix+"_ADDR"] = ip
		}
	}
	return vars
}

func variable(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
