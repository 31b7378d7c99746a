package apiserver

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"

	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

// connectProxy passes any request on to a pod, to a ready endpoint of a service
// or to a node's agent, below the object's subresource "proxy". The object's name
// may say how: [https:]name[:port], with a port's number or name.
//
// The server does not verify the certificates of pods and services: they have no
// authority in common.
func (s *Server) connectProxy(w http.ResponseWriter, r *http.Request, info *requestInfo, q registry.Request) error {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(q.Name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", strings.TrimSuffix(info.Resource, "s"), q.Name))
	}
	q.Name = name
	q.Subresource = ""
	it, err := s.reg.Get(r.Context(), q, "")
	if err != nil {
		return err
	}
	target := &url.URL{Scheme: scheme}
	var transport http.RoundTripper = s.outward
	switch o := it.Object.(type) {
	case *corev1.Pod:
		target.Host, err = podHost(o, port)
	case *corev1.Service:
		target.Host, err = s.endpoint(o, port)
	case *corev1.Node:
		target.Scheme, target.Host, transport, err = s.nodeHost(o, scheme, port)
	default:
		return apierrors.NewInternalError(fmt.Errorf("a proxy to a %T", o))
	}
	if err != nil {
		return err
	}
	if target.Scheme == "" {
		target.Scheme = "http"
	}
	_, rest, _ := strings.Cut(r.URL.Path, "/"+info.Name+"/proxy")
	target.Path, target.RawQuery = rest, r.URL.RawQuery
	r = r.Clone(r.Context())
	r.Header.Del("Authorization")
	h := utilproxy.NewUpgradeAwareHandler(target, transport, true, false, responder{})
	h.ServeHTTP(w, r)
	return nil
}

// responder answers for a backend that cannot be reached.
type responder struct{}

func (responder) Error(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		writeError(w, r, err)
	}
}

// newOutward is the transport to pods and services.
func newOutward() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see connectProxy
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 4,
		DisableCompression: true,
	}
}

func podHost(p *corev1.Pod, port string) (string, error) {
	if p.Status.PodIP == "" {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("address not allowed: pod %s has no address yet", p.Name))
	}
	if port == "" {
		port = "80"
		for _, c := range p.Spec.Containers {
			if len(c.Ports) > 0 {
				port = strconv.Itoa(int(c.Ports[0].ContainerPort))
				break
			}
		}
	}
	if _, err := strconv.Atoi(port); err != nil {
		for _, c := range p.Spec.Containers {
			for _, cp := range c.Ports {
				if cp.Name == port {
					return net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(cp.ContainerPort))), nil
				}
			}
		}
		return "", apierrors.NewBadRequest(fmt.Sprintf("pod %s has no port %q", p.Name, port))
	}
	return net.JoinHostPort(p.Status.PodIP, port), nil
}

// endpoint picks one of the service's ready endpoints by chance.
func (s *Server) endpoint(svc *corev1.Service, port string) (string, error) {
	none := apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", svc.Name))
	want, ok := servicePort(svc, port)
	if !ok {
		return "", none
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(want.Port))), nil
	}
	var hosts []string
	s.reg.Resource(slicesGVR).Cache.Snapshot().Ascend(svc.Namespace+"/", "", func(i *watchcache.Item) bool {
		if es := i.Object.(*discoveryv1.EndpointSlice); es.Labels[discoveryv1.LabelServiceName] == svc.Name {
			hosts = append(hosts, readyHosts(es, want.Name)...)
		}
		return true
	})
	if len(hosts) == 0 {
		return "", none
	}
	return hosts[rand.IntN(len(hosts))], nil
}

// readyHosts are the addresses and ports at which a slice's ready endpoints serve
// the named port.
func readyHosts(es *discoveryv1.EndpointSlice, port string) (hosts []string) {
	for _, p := range es.Ports {
		if p.Port == nil || p.Name != nil && *p.Name != port || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			continue
		}
		for _, e := range es.Endpoints {
			if (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
				hosts = append(hosts, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
			}
		}
	}
	return hosts
}

var slicesGVR = schema.GroupVersionResource{Group: discoveryv1.GroupName, Version: "v1", Resource: "endpointslices"}

// servicePort finds the port that a request names: by name or number, or the only one.
func servicePort(svc *corev1.Service, port string) (corev1.ServicePort, bool) {
	if port == "" {
		if len(svc.Spec.Ports) == 1 {
			return svc.Spec.Ports[0], true
		}
		// As Kubernetes does: the port without a name.
		for _, p := range svc.Spec.Ports {
			if p.Name == "" {
				return p, true
			}
		}
		return corev1.ServicePort{}, false
	}
	for _, p := range svc.Spec.Ports {
		if p.Name == port || intstr.Parse(port) == intstr.FromInt32(p.Port) {
			return p, true
		}
	}
	return corev1.ServicePort{}, false
}

// nodeHost is the node's agent, unless another port is asked for.
func (s *Server) nodeHost(n *corev1.Node, scheme, port string) (string, string, http.RoundTripper, error) {
	base, err := s.nodeURL(n)
	if err != nil {
		return "", "", nil, err
	}
	if port == "" || port == base.Port() {
		return "https", base.Host, s.kubelet.Transport, nil
	}
	return scheme, net.JoinHostPort(base.Hostname(), port), s.outward, nil
}
