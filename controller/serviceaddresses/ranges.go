// Package serviceaddresses looks after the ranges that services get their
// addresses from and after the objects of those addresses. The API server gives
// the addresses away, and writes and deletes their IPAddresses together with the
// services; what a person or a restored backup has changed since, is repaired here.
//
// See https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/
// and https://kubernetes.io/docs/tasks/network/extend-service-ip-ranges/
package serviceaddresses

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// The resources that the controllers keep.
var (
	Ranges    = client.Resource{Group: networkingv1.GroupName, Version: "v1", Resource: "servicecidrs"}
	Addresses = client.Resource{Group: networkingv1.GroupName, Version: "v1", Resource: "ipaddresses"}
)

const (
	finalizer = "networking.k8s.io/service-cidr-finalizer"
	ready     = "Kubernetes Service CIDR is ready"
	inUse     = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
	// grace is how long a deleted range waits without addresses: until every API
	// server has ceased to use it, and services under way have their address.
	grace = 10 * time.Second
)

// NewRanges declares the controller of ServiceCIDRs: it says which are ready, and
// keeps those that are being deleted as long as they have addresses.
func NewRanges() engine.Controller {
	return engine.Controller{
		Name: "service-cidr-controller",
		Watches: []engine.Watch{
			{Resource: Ranges, Keys: func(env *engine.Env, ev client.Event) []engine.Key {
				// Another range may take the addresses over, or have had them so far.
				return append(leaving(env), engine.Key{Name: ev.Object.GetName()})
			}},
			{Resource: Addresses, Keys: func(env *engine.Env, ev client.Event) []engine.Key {
				if ev.Type != client.Deleted {
					return nil
				}
				return leaving(env)
			}},
		},
		Writes: []engine.Write{{Resource: Ranges, Verbs: []string{"update"}}, {Resource: Ranges, Subresource: "status", Verbs: []string{"update"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				r, ok := client.Cached[*networkingv1.ServiceCIDR](env.Cache(Ranges), "", key.Name)
				if !ok {
					return 0, nil
				}
				after, err := keep(ctx, env, r)
				if err != nil && !apierrors.IsNotFound(err) {
					return 0, fmt.Errorf("service range %s: %w", r.Name, err)
				}
				return after, nil
			}
		},
	}
}

// leaving are the ranges that are being deleted.
func leaving(env *engine.Env) (keys []engine.Key) {
	env.Cache(Ranges).List("", nil, func(o client.Object) bool {
		if o.GetDeletionTimestamp() != nil {
			keys = append(keys, engine.Key{Name: o.GetName()})
		}
		return true
	})
	return keys
}

func keep(ctx context.Context, env *engine.Env, r *networkingv1.ServiceCIDR) (time.Duration, error) {
	k := client.Key{Resource: Ranges, Name: r.Name}
	held := slices.Contains(r.Finalizers, finalizer)
	switch {
	case r.DeletionTimestamp == nil:
		if !held {
			next := r.DeepCopy()
			next.Finalizers = append(next.Finalizers, finalizer)
			out, err := env.Client.Update(ctx, k, next)
			if err != nil {
				return 0, err
			}
			if now, ok := out.(*networkingv1.ServiceCIDR); ok {
				r = now
			}
		}
		if meta.FindStatusCondition(r.Status.Conditions, networkingv1.ServiceCIDRConditionReady) != nil {
			return 0, nil
		}
		return 0, say(ctx, env, r, metav1.ConditionTrue, "", ready)
	case !held:
		return 0, nil
	case used(env, r):
		return 0, say(ctx, env, r, metav1.ConditionFalse, networkingv1.ServiceCIDRReasonTerminating, inUse)
	}
	if wait := r.DeletionTimestamp.Add(grace).Sub(env.Clock.Now()); wait > 0 {
		return wait, nil
	}
	next := r.DeepCopy()
	next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == finalizer })
	_, err := env.Client.Update(ctx, k, next)
	return 0, err
}

func say(ctx context.Context, env *engine.Env, r *networkingv1.ServiceCIDR, status metav1.ConditionStatus, reason, message string) error {
	next := r.DeepCopy()
	// SetStatusCondition keeps the time of a status that stays as it is.
	changed := meta.SetStatusCondition(&next.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: status, Reason: reason, Message: message,
		LastTransitionTime: metav1.NewTime(env.Clock.Now()).Rfc3339Copy()})
	if !changed {
		return nil
	}
	_, err := env.Client.Update(ctx, client.Key{Resource: Ranges, Name: r.Name}.Sub("status"), next)
	return err
}

// used tells whether an address lies in the range, and in no other that stays.
func used(env *engine.Env, r *networkingv1.ServiceCIDR) bool {
	mine := prefixes(r)
	var others []netip.Prefix
	env.Cache(Ranges).List("", nil, func(o client.Object) bool {
		if o.GetName() != r.Name && o.GetDeletionTimestamp() == nil {
			others = append(others, prefixes(o.(*networkingv1.ServiceCIDR))...)
		}
		return true
	})
	found := false
	env.Cache(Addresses).List("", nil, func(o client.Object) bool {
		addr, err := netip.ParseAddr(o.GetName())
		found = err == nil && contain(mine, addr) && !contain(others, addr)
		return !found
	})
	return found
}

func prefixes(r *networkingv1.ServiceCIDR) (out []netip.Prefix) {
	for _, text := range r.Spec.CIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func contain(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}
