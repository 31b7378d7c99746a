// Package bootstrap makes the objects that every cluster begins with: the system
// namespaces, the built-in priority classes, the default roles and the service
// "kubernetes". It runs at each start and writes only what is missing.
package bootstrap

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
)

// Cluster is what the first objects depend on.
type Cluster struct {
	// ServiceIP is the address of the service "kubernetes": the first of the
	// service range.
	ServiceIP netip.Addr
	// Services is the service range.
	Services netip.Prefix
	// Endpoint is where this API server listens, as pods reach it.
	Endpoint netip.AddrPort
	// DNSIP is the address of the service "kube-dns".
	DNSIP netip.Addr
	// DNS is where the node's DNS server listens.
	DNS netip.AddrPort
	// ClientCA and FrontProxyCA are the authorities of the users' certificates and of
	// the front proxy's, in PEM; empty: extension servers learn of none.
	ClientCA, FrontProxyCA []byte
	// ClusterInfo is the kubeconfig, without a user, by which machines find the
	// cluster that they want to join; empty: none is published.
	ClusterInfo string
	// Controllers are the permissions that the controllers declare.
	Controllers []rbacv1.PolicyRule
}

type entry struct {
	gvr schema.GroupVersionResource
	obj kind.Object
	// current: the object is brought up to date; else it is only created
	current bool
}

// Run creates what is missing.
func Run(ctx context.Context, reg *registry.Registry, c Cluster) error {
	for _, e := range entries(c) {
		if err := ensure(ctx, reg, e); err != nil {
			return fmt.Errorf("first objects: %s %s: %w", e.gvr.Resource, e.obj.GetName(), err)
		}
	}
	if c.Services.IsValid() {
		if err := readyServiceCIDR(ctx, reg); err != nil {
			return fmt.Errorf("first objects: %w", err)
		}
	}
	return nil
}

// defaultServiceCIDR is the name of the range that the server was started with.
const defaultServiceCIDR = "kubernetes"

var serviceCIDRs = networkingv1.SchemeGroupVersion.WithResource("servicecidrs")

// readyServiceCIDR says of the service range that addresses come from it.
func readyServiceCIDR(ctx context.Context, reg *registry.Registry) error {
	q := registry.Request{User: auth.Component("system:apiserver", auth.GroupMasters), Resource: reg.Resource(serviceCIDRs), Name: defaultServiceCIDR, Subresource: "status"}
	it, err := reg.Get(ctx, q, "0")
	if err != nil {
		return err
	}
	r := it.Object.(*networkingv1.ServiceCIDR)
	if len(r.Status.Conditions) > 0 {
		return nil
	}
	r = r.DeepCopy()
	r.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue,
		Message: "Kubernetes default Service CIDR is ready", LastTransitionTime: r.CreationTimestamp}}
	if _, _, err := reg.Update(ctx, q, r); err != nil {
		return fmt.Errorf("status of the service range: %w", err)
	}
	return nil
}

func ensure(ctx context.Context, reg *registry.Registry, e entry) error {
	q := registry.Request{User: auth.Component("system:apiserver", auth.GroupMasters), Resource: reg.Resource(e.gvr), Namespace: e.obj.GetNamespace(), Name: e.obj.GetName()}
	it, err := reg.Get(ctx, q, "0")
	if apierrors.IsNotFound(err) {
		_, err = reg.Create(ctx, q, e.obj)
		if apierrors.IsAlreadyExists(err) {
			return nil // another server was faster
		}
		return err
	}
	if err != nil || !e.current {
		return err
	}
	if next := renewed(it.Object, e.obj); next != nil {
		_, _, err = reg.Update(ctx, q, next)
	}
	return err
}

// renewed is what a present object must become; nil if it is right.
func renewed(old, want kind.Object) kind.Object {
	switch w := want.(type) {
	case *discoveryv1.EndpointSlice:
		if s := old.(*discoveryv1.EndpointSlice); equality.Semantic.DeepEqual(w.Endpoints, s.Endpoints) && equality.Semantic.DeepEqual(w.Ports, s.Ports) {
			return nil
		}
		return w
	case *corev1.ConfigMap:
		if w.Name == clusterInfoName {
			return renewedInfo(old.(*corev1.ConfigMap), w)
		}
		if equality.Semantic.DeepEqual(w.Data, old.(*corev1.ConfigMap).Data) {
			return nil
		}
	case *rbacv1.ClusterRoleBinding:
		// Earlier versions bound the whole role; now the Node authorizer permits what
		// concerns a node.
		b := old.(*rbacv1.ClusterRoleBinding)
		i := slices.IndexFunc(b.Subjects, func(s rbacv1.Subject) bool { return s.Kind == rbacv1.GroupKind && s.Name == auth.GroupNodes })
		if i < 0 {
			return nil
		}
		next := b.DeepCopy()
		next.Subjects = slices.Delete(next.Subjects, i, i+1)
		return next
	case *corev1.Endpoints:
		if equality.Semantic.DeepEqual(w.Subsets, old.(*corev1.Endpoints).Subsets) {
			return nil
		}
	case *rbacv1.ClusterRole:
		role := old.(*rbacv1.ClusterRole)
		add := missing(role.Rules, w.Rules)
		if len(add) == 0 || role.Annotations[rbacv1.AutoUpdateAnnotationKey] != "true" {
			return nil
		}
		next := role.DeepCopy()
		next.Rules = append(next.Rules, add...)
		return next
	}
	return want
}

func entries(c Cluster) []entry {
	var out []entry
	core := schema.GroupVersion{Version: "v1"}
	for _, n := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		out = append(out, entry{core.WithResource("namespaces"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}}, false})
	}
	classes := schedulingv1.SchemeGroupVersion.WithResource("priorityclasses")
	for name, pc := range map[string]struct {
		value int32
		doc   string
	}{
		"system-cluster-critical": {2000000000, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."},
		"system-node-critical":    {2000001000, "Used for system critical pods that must not be moved from their current node."},
	} {
		out = append(out, entry{classes, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: pc.value, Description: pc.doc}, false})
	}
	out = append(out, roles(c.Controllers)...)
	out = append(out, nodeLeases()...)
	out = append(out, extensionServers(c)...)
	out = append(out, clusterInfo(c)...)
	out = append(out, service(core, "kubernetes", metav1.NamespaceDefault, c.ServiceIP,
		map[string]string{"component": "apiserver", "provider": "kubernetes"},
		corev1.ServicePort{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(int32(c.Endpoint.Port()))}))
	out = append(out, endpoints("kubernetes", metav1.NamespaceDefault, c.Endpoint))
	if c.Services.IsValid() {
		out = append(out, entry{serviceCIDRs, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: defaultServiceCIDR},
			Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{c.Services.String()}}}, false})
	}
	out = append(out, slice("kubernetes", metav1.NamespaceDefault, c.Endpoint, port("https", corev1.ProtocolTCP, c.Endpoint.Port())))
	if c.DNSIP.IsValid() {
		out = append(out, service(core, "kube-dns", metav1.NamespaceSystem, c.DNSIP,
			map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
			corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(int32(c.DNS.Port()))},
			corev1.ServicePort{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(int32(c.DNS.Port()))}))
		out = append(out, slice("kube-dns", metav1.NamespaceSystem, c.DNS, port("dns", corev1.ProtocolUDP, c.DNS.Port()), port("dns-tcp", corev1.ProtocolTCP, c.DNS.Port())))
	}
	return out
}

func service(core schema.GroupVersion, name, namespace string, ip netip.Addr, labels map[string]string, ports ...corev1.ServicePort) entry {
	return entry{core.WithResource("services"), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels},
		Spec:       corev1.ServiceSpec{ClusterIP: ip.String(), ClusterIPs: []string{ip.String()}, Type: corev1.ServiceTypeClusterIP, Ports: ports},
	}, false}
}

// endpoints is the old form of a slice; it is not to be mirrored into another.
func endpoints(name, namespace string, at netip.AddrPort) entry {
	return entry{corev1.SchemeGroupVersion.WithResource("endpoints"), &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: at.Addr().String()}},
			Ports: []corev1.EndpointPort{{Name: "https", Port: int32(at.Port()), Protocol: corev1.ProtocolTCP}}}},
	}, true}
}

func port(name string, protocol corev1.Protocol, number uint16) discoveryv1.EndpointPort {
	n := int32(number)
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &n}
}

func slice(name, namespace string, at netip.AddrPort, ports ...discoveryv1.EndpointPort) entry {
	ready := true
	return entry{discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "knarr.dev"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{at.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       ports,
	}, true}
}
