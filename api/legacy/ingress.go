package legacy

import (
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"knarr.dev/knarr/api/kind"
)

// The two old ingresses have one shape. It differs from today's in what a backend
// looks like, which the common JSON leaves empty.

func networkingIngress(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: "networking.k8s.io", Version: v1beta1}, hub, ingressUp, ingressDown)
}

func extensionsIngress(hub *kind.Kind) *kind.Kind {
	k := networkingIngress(hub)
	up, down := k.ToHub, k.FromHub
	out := kind.Kind{Group: extensions, Version: v1beta1}
	follow(&out, hub)
	out.ToHub = func(o kind.Object) (kind.Object, error) {
		var same networkingv1beta1.Ingress
		if err := convert(o, &same); err != nil {
			return nil, err
		}
		return up(&same)
	}
	out.FromHub = func(o kind.Object) (kind.Object, error) {
		same, err := down(o)
		if err != nil {
			return nil, err
		}
		var old extensionsv1beta1.Ingress
		return &old, convert(same, &old)
	}
	return &out
}

func ingressUp(old *networkingv1beta1.Ingress, i *networkingv1.Ingress) {
	if old.Spec.Backend != nil {
		b := backendUp(old.Spec.Backend)
		i.Spec.DefaultBackend = &b
	}
	for n, r := range old.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for m := range r.HTTP.Paths {
			p := &i.Spec.Rules[n].HTTP.Paths[m]
			p.Backend = backendUp(&r.HTTP.Paths[m].Backend)
			orNew(&p.PathType, networkingv1.PathTypeImplementationSpecific)
		}
	}
}

func ingressDown(i *networkingv1.Ingress, old *networkingv1beta1.Ingress) {
	if i.Spec.DefaultBackend != nil {
		b := backendDown(i.Spec.DefaultBackend)
		old.Spec.Backend = &b
	}
	for n, r := range i.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for m := range r.HTTP.Paths {
			old.Spec.Rules[n].HTTP.Paths[m].Backend = backendDown(&r.HTTP.Paths[m].Backend)
		}
	}
}

func backendUp(old *networkingv1beta1.IngressBackend) networkingv1.IngressBackend {
	b := networkingv1.IngressBackend{Resource: old.Resource}
	port := networkingv1.ServiceBackendPort{Name: old.ServicePort.StrVal}
	if old.ServicePort.Type == intstr.Int {
		port = networkingv1.ServiceBackendPort{Number: old.ServicePort.IntVal}
	}
	if old.ServiceName != "" || port != (networkingv1.ServiceBackendPort{}) {
		b.Service = &networkingv1.IngressServiceBackend{Name: old.ServiceName, Port: port}
	}
	return b
}

func backendDown(b *networkingv1.IngressBackend) networkingv1beta1.IngressBackend {
	old := networkingv1beta1.IngressBackend{Resource: b.Resource}
	if s := b.Service; s != nil {
		old.ServiceName = s.Name
		if old.ServicePort = intstr.FromInt32(s.Port.Number); s.Port.Name != "" {
			old.ServicePort = intstr.FromString(s.Port.Name)
		}
	}
	return old
}
