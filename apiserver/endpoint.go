package apiserver

import (
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/api/kind"
)

// ServiceAddress is a webhook.Resolver: it returns where a Service's port is
// reached from this machine. That is its cluster address; for a Service without
// one it is a ready endpoint, and for one of type ExternalName that name.
func (l *Lookup) ServiceAddress(namespace, name string, port int32) (string, error) {
	svc, ok := l.One(corev1.SchemeGroupVersion.WithResource("services"), namespace, name).(*corev1.Service)
	if !ok {
		return "", apierrors.NewNotFound(corev1.Resource("service"), name)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(port))), nil
	}
	p := portOf(svc, port)
	if p == nil {
		return "", fmt.Errorf("no service port %d found for service %q", port, name)
	}
	if ip := svc.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
		if l.endpoint(svc, p) == "" { // a refusal now is better than a time-out later
			return "", fmt.Errorf("no endpoints available for service %q", name)
		}
		return net.JoinHostPort(ip, strconv.Itoa(int(port))), nil
	}
	if addr := l.endpoint(svc, p); addr != "" {
		return addr, nil
	}
	return "", fmt.Errorf("no endpoints available for service %q", name)
}

func portOf(svc *corev1.Service, port int32) *corev1.ServicePort {
	for i := range svc.Spec.Ports {
		if svc.Spec.Ports[i].Port == port {
			return &svc.Spec.Ports[i]
		}
	}
	return nil
}

// endpoint returns the address of a ready endpoint of a Service's port.
func (l *Lookup) endpoint(svc *corev1.Service, p *corev1.ServicePort) (addr string) {
	l.Each(discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), svc.Namespace, func(o kind.Object) bool {
		s := o.(*discoveryv1.EndpointSlice)
		if s.Labels[discoveryv1.LabelServiceName] != svc.Name {
			return true
		}
		port := slicePort(s, p.Name)
		if port == 0 {
			return true
		}
		for _, e := range s.Endpoints {
			if ready := e.Conditions.Ready; (ready == nil || *ready) && len(e.Addresses) > 0 {
				addr = net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(port)))
				return false
			}
		}
		return true
	})
	return addr
}

func slicePort(s *discoveryv1.EndpointSlice, name string) int32 {
	for _, p := range s.Ports {
		if p.Port != nil && (p.Name == nil && name == "" || p.Name != nil && *p.Name == name) {
			return *p.Port
		}
	}
	return 0
}
