package endpointslice

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

const (
	overCapacity = corev1.EndpointsOverCapacity
	mostInLegacy = 1000
	managedBy    = "endpoints.kubernetes.io/managed-by"
	byController = "endpoint-controller"
)

// NewEndpoints declares the controller of the old Endpoints objects.
func NewEndpoints() engine.Controller {
	return engine.Controller{
		Name: "endpoints-controller",
		Watches: []engine.Watch{
			{Resource: client.Services, Keys: engine.Self},
			{Resource: client.Pods, Keys: servicesOf},
			{Resource: client.Endpoints, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				if ev.Type == client.Added {
					return nil
				}
				return []engine.Key{engine.KeyOf(ev.Object)}
			}},
		},
		Writes:  []engine.Write{{Resource: client.Endpoints, Verbs: []string{"create", "update", "delete"}}},
		Workers: 2,
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return 0, legacy(ctx, env, key) }
		},
	}
}

func legacy(ctx context.Context, env *engine.Env, key engine.Key) error {
	k := client.Key{Resource: client.Endpoints, Namespace: key.Namespace, Name: key.Name}
	old, exists := client.Cached[*corev1.Endpoints](env.Cache(client.Endpoints), key.Namespace, key.Name)
	svc, ok := client.Cached[*corev1.Service](env.Cache(client.Services), key.Namespace, key.Name)
	if !ok {
		if exists && old.Labels[managedBy] == byController {
			if err := env.Client.Delete(ctx, k, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("deleting %s: %w", k, err)
			}
		}
		return nil
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	pods := client.ListCached[*corev1.Pod](env.Cache(client.Pods), svc.Namespace, labels.SelectorFromSet(svc.Spec.Selector))
	next := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name}}
	if exists {
		next = old.DeepCopy()
	}
	next.Labels = maps.Clone(svc.Labels)
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	next.Labels[managedBy] = byController
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		next.Labels[corev1.IsHeadlessService] = ""
	}
	var over bool
	next.Subsets, over = subsets(svc, pods)
	if over {
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[overCapacity] = "truncated"
	} else {
		delete(next.Annotations, overCapacity)
	}
	if exists && equality.Semantic.DeepEqual(old.Subsets, next.Subsets) && equality.Semantic.DeepEqual(old.Labels, next.Labels) {
		return nil
	}
	if at := lastTrigger(svc, pods); at != "" {
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[triggerTime] = at
	}
	var err error
	if exists {
		_, err = env.Client.Update(ctx, k, next)
	} else {
		_, err = env.Client.Create(ctx, k, next)
	}
	if err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("writing %s: %w", k, err)
	}
	return nil
}

// subsets groups the addresses of the service's first family by ports.
// Terminating pods are left out, as this kind cannot say that they are.
func subsets(svc *corev1.Service, pods []*corev1.Pod) (out []corev1.EndpointSubset, over bool) {
	index := map[string]int{}
	family := families(svc)[0]
	total := 0
	for _, pod := range pods {
		ip := address(pod, family)
		if ip == "" || engine.Finished(pod) || (pod.DeletionTimestamp != nil && !svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		if total++; total > mostInLegacy {
			over = true
			break
		}
		node := pod.Spec.NodeName
		a := corev1.EndpointAddress{IP: ip, NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}}
		if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
			a.Hostname = pod.Spec.Hostname
		}
		var ps []corev1.EndpointPort
		for _, p := range ports(svc, pod) {
			ps = append(ps, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol, AppProtocol: p.AppProtocol})
		}
		if len(ps) == 0 && len(svc.Spec.Ports) > 0 {
			continue
		}
		id, err := json.Marshal(ps)
		if err != nil {
			continue // plain strings and numbers always marshal
		}
		i, ok := index[string(id)]
		if !ok {
			i = len(out)
			index[string(id)] = i
			out = append(out, corev1.EndpointSubset{Ports: ps})
		}
		if engine.Ready(pod) || svc.Spec.PublishNotReadyAddresses {
			out[i].Addresses = append(out[i].Addresses, a)
		} else {
			out[i].NotReadyAddresses = append(out[i].NotReadyAddresses, a)
		}
	}
	byIP := func(a, b corev1.EndpointAddress) int { return cmp.Compare(a.IP, b.IP) }
	for i := range out {
		slices.SortFunc(out[i].Addresses, byIP)
		slices.SortFunc(out[i].NotReadyAddresses, byIP)
	}
	return out, over
}

const mirrorer = "endpointslicemirroring-controller.k8s.io"

// NewMirroring declares the controller that shows handwritten Endpoints as slices.
func NewMirroring() engine.Controller {
	return engine.Controller{
		Name: "endpointslice-mirroring-controller",
		Watches: []engine.Watch{
			{Resource: client.Endpoints, Keys: engine.Self},
			{Resource: client.Services, Keys: engine.Self},
			{Resource: client.EndpointSlices, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				l := ev.Object.GetLabels()
				if l[discoveryv1.LabelManagedBy] != mirrorer || ev.Type == client.Added {
					return nil
				}
				return []engine.Key{{Namespace: ev.Object.GetNamespace(), Name: l[discoveryv1.LabelServiceName]}}
			}},
		},
		Writes: []engine.Write{{Resource: client.EndpointSlices, Verbs: []string{"create", "update", "delete"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return mirror(ctx, env, key) }
		},
	}
}

func mirror(ctx context.Context, env *engine.Env, key engine.Key) (time.Duration, error) {
	ep, haveEp := client.Cached[*corev1.Endpoints](env.Cache(client.Endpoints), key.Namespace, key.Name)
	svc, haveSvc := client.Cached[*corev1.Service](env.Cache(client.Services), key.Namespace, key.Name)
	var want []*group
	if haveEp && haveSvc && len(svc.Spec.Selector) == 0 && ep.Labels[discoveryv1.LabelSkipMirror] != "true" && ep.Annotations["control-plane.alpha.kubernetes.io/leader"] == "" {
		want = mirrored(ep)
	}
	pending, again := env.Ledger.Pending(key)
	have := client.ListCached[*discoveryv1.EndpointSlice](env.Cache(client.EndpointSlices), key.Namespace,
		labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: key.Name, discoveryv1.LabelManagedBy: mirrorer}))
	have = append(have, engine.Unseen(pending, have)...)
	create, update, remove := pack(have, want)
	for _, s := range create {
		s.Namespace, s.GenerateName = key.Namespace, key.Name+"-"
		s.Labels = maps.Clone(ep.Labels)
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[discoveryv1.LabelServiceName], s.Labels[discoveryv1.LabelManagedBy] = key.Name, mirrorer
		s.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(ep, corev1.SchemeGroupVersion.WithKind("Endpoints"))}
		obj, err := env.Client.Create(ctx, client.Key{Resource: client.EndpointSlices, Namespace: key.Namespace}, s)
		if err != nil {
			return 0, fmt.Errorf("mirroring endpoints %s: %w", key, err)
		}
		env.Ledger.Created(key, env.Cache(client.EndpointSlices), obj)
	}
	for i, s := range update {
		if slices.ContainsFunc(have, func(h *discoveryv1.EndpointSlice) bool { return equality.Semantic.DeepEqual(h, s) }) {
			continue
		}
		k := client.Key{Resource: client.EndpointSlices, Namespace: key.Namespace, Name: update[i].Name}
		if _, err := env.Client.Update(ctx, k, s); err != nil {
			return 0, fmt.Errorf("updating %s: %w", k, err)
		}
	}
	for _, s := range remove {
		k := client.Key{Resource: client.EndpointSlices, Namespace: key.Namespace, Name: s.Name}
		if err := env.Client.Delete(ctx, k, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return 0, fmt.Errorf("deleting %s: %w", k, err)
		}
	}
	return again, nil
}

// mirrored turns subsets into groups, by ports and address family.
func mirrored(ep *corev1.Endpoints) (out []*group) {
	byKey := map[string]*group{}
	for _, sub := range ep.Subsets {
		ps := []discoveryv1.EndpointPort{}
		for _, p := range sub.Ports {
			name, protocol, number := p.Name, p.Protocol, p.Port
			ps = append(ps, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: p.AppProtocol})
		}
		add := func(as []corev1.EndpointAddress, ready bool) {
			for _, a := range as {
				g := &group{family: discoveryv1.AddressTypeIPv4, ports: ps}
				if isV6(a.IP) {
					g.family = discoveryv1.AddressTypeIPv6
				}
				if have := byKey[g.key()]; have != nil {
					g = have
				} else {
					byKey[g.key()] = g
					out = append(out, g)
				}
				e := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, NodeName: a.NodeName, TargetRef: a.TargetRef}
				if a.Hostname != "" {
					host := a.Hostname
					e.Hostname = &host
				}
				g.endpoints = append(g.endpoints, e)
			}
		}
		add(sub.Addresses, true)
		add(sub.NotReadyAddresses, false)
	}
	return out
}
