package serviceaddresses

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// managedBy is who keeps the IPAddresses of services, as in Kubernetes.
const managedBy = "ipallocator.k8s.io"

// NewRepair declares the controller that makes the IPAddresses agree with the
// services. Keys are services, and addresses, which have no namespace.
func NewRepair() engine.Controller {
	return engine.Controller{
		Name: "service-ip-repair-controller",
		Watches: []engine.Watch{
			{Resource: client.Services, Keys: func(_ *engine.Env, ev client.Event) (keys []engine.Key) {
				if ev.Type != client.Deleted {
					keys = append(keys, engine.Key{Namespace: ev.Object.GetNamespace(), Name: ev.Object.GetName()})
				}
				before := ev.Old
				if ev.Type == client.Deleted {
					before = ev.Object
				}
				if svc, ok := before.(*corev1.Service); ok {
					for _, addr := range clusterIPs(svc) {
						keys = append(keys, engine.Key{Name: addr.String()})
					}
				}
				return keys
			}},
			{Resource: Addresses, Keys: func(_ *engine.Env, ev client.Event) []engine.Key {
				if ev.Type != client.Deleted {
					return []engine.Key{{Name: ev.Object.GetName()}}
				}
				if p := parent(ev.Object.(*networkingv1.IPAddress)); p != (engine.Key{}) {
					return []engine.Key{p}
				}
				return nil
			}},
		},
		Writes: []engine.Write{{Resource: Addresses, Verbs: []string{"create", "delete"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				if key.Namespace == "" {
					return 0, repairAddress(ctx, env, key.Name)
				}
				return 0, repairService(ctx, env, key)
			}
		},
	}
}

// parent is the service that an address names, or none.
func parent(a *networkingv1.IPAddress) engine.Key {
	p := a.Spec.ParentRef
	if p == nil || p.Group != "" || p.Resource != "services" {
		return engine.Key{}
	}
	return engine.Key{Namespace: p.Namespace, Name: p.Name}
}

func clusterIPs(svc *corev1.Service) (out []netip.Addr) {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	for _, ip := range svc.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			out = append(out, addr)
		}
	}
	return out
}

// repairService makes the objects that a service's addresses lack.
func repairService(ctx context.Context, env *engine.Env, key engine.Key) error {
	svc, ok := client.Cached[*corev1.Service](env.Cache(client.Services), key.Namespace, key.Name)
	if !ok {
		return nil
	}
	for _, addr := range clusterIPs(svc) {
		a, ok := client.Cached[*networkingv1.IPAddress](env.Cache(Addresses), "", addr.String())
		if ok {
			if parent(a) != key {
				env.Recorder.Event(svc, corev1.EventTypeWarning, "ClusterIPAlreadyAllocated",
					fmt.Sprintf("Cluster IP [%s]:%s was assigned to multiple services; please recreate service", family(addr), addr))
			}
			continue
		}
		if live, err := has(ctx, env, key, addr); err != nil || !live {
			return err // the next event tells
		}
		env.Recorder.Event(svc, corev1.EventTypeWarning, "ClusterIPNotAllocated", fmt.Sprintf("Cluster IP [%s]: %s is not allocated; repairing", family(addr), addr))
		_, err := env.Client.Create(ctx, client.Key{Resource: Addresses, Name: addr.String()}, &networkingv1.IPAddress{
			ObjectMeta: metav1.ObjectMeta{Name: addr.String(), Labels: map[string]string{
				networkingv1.LabelIPAddressFamily: string(family(addr)), networkingv1.LabelManagedBy: managedBy}},
			Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: key.Namespace, Name: key.Name}},
		})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("record the address %s of service %s: %w", addr, key, err)
		}
	}
	return nil
}

func family(a netip.Addr) corev1.IPFamily {
	if a.Is6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// repairAddress deletes an object of the allocator's whose service does not have
// the address.
func repairAddress(ctx context.Context, env *engine.Env, name string) error {
	a, ok := client.Cached[*networkingv1.IPAddress](env.Cache(Addresses), "", name)
	if !ok || a.Labels[networkingv1.LabelManagedBy] != managedBy {
		return nil
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return nil
	}
	key, reason := parent(a), "IPAddressWrongReference"
	if key != (engine.Key{}) {
		live, err := has(ctx, env, key, addr)
		if err != nil || live {
			return err
		}
		reason = "IPAddressNotAllocated"
	}
	message := fmt.Sprintf("IPAddress: %s for Service %s appears to have leaked: cleaning up", name, key)
	if reason == "IPAddressWrongReference" {
		message = fmt.Sprintf("IPAddress: %s for Service %s has a wrong reference; cleaning up", name, key)
	}
	err = env.Client.Delete(ctx, client.Key{Resource: Addresses, Name: name}, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &a.UID, ResourceVersion: &a.ResourceVersion}})
	switch {
	case apierrors.IsNotFound(err):
		return nil // it went with its service
	case err != nil:
		return fmt.Errorf("delete the address %s, which service %s does not have: %w", name, key, err)
	}
	env.Recorder.Event(a, corev1.EventTypeWarning, reason, message)
	return nil
}

// has asks the server whether a service has an address now.
func has(ctx context.Context, env *engine.Env, key engine.Key, addr netip.Addr) (bool, error) {
	svc, err := client.Get[*corev1.Service](ctx, env.Client, client.Key{Resource: client.Services, Namespace: key.Namespace, Name: key.Name})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read service %s: %w", key, err)
	}
	return slices.Contains(clusterIPs(svc), addr), nil
}
