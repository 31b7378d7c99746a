package network

import (
	"context"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
)

const (
	// A connection without data for so long is idle: its client must be able to
	// meet its end at any time anyway.
	idleAfter = time.Second
	// How often the connections of a draining pod are counted. Only while a pod
	// drains: the kernel has no event for "the last connection has ended".
	countEvery = 10 * time.Millisecond
)

// Drain blocks until no new connection can reach the pod through a service and
// those that exist have ended or are idle, or until half of the time that ctx
// leaves is over: the other half belongs to the pod's own shutdown.
//
//	deletionTimestamp ─> EndpointSlices show it not ready ─> the kernel has it
//	─> so have those of all Ready nodes ─> connections end ─> (preStop, SIGTERM: the caller)
func (n *Network) Drain(ctx context.Context, pod *corev1.Pod) error {
	services := n.selecting(pod)
	if len(services) == 0 || pod.Status.PodIP == "" {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline.Sub(n.cfg.Clock.Now())/2)
		defer cancel()
	}
	if err := n.awaitRemoval(ctx, pod, services); err != nil {
		return err
	}
	rev := n.shownAt(pod, services)
	if err := n.sync(ctx, services); err != nil {
		return err
	}
	if err := n.awaitNodes(ctx, rev); err != nil {
		return err
	}
	for _, ip := range pod.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil && !pod.Spec.HostNetwork {
			if err := n.awaitQuiet(ctx, addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// selecting lists the services whose endpoints the pod may be.
func (n *Network) selecting(pod *corev1.Pod) []types.NamespacedName {
	var out []types.NamespacedName
	n.services.List(pod.Namespace, nil, func(o client.Object) bool {
		svc, ok := o.(*corev1.Service)
		if ok && len(svc.Spec.Selector) > 0 && labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			out = append(out, types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name})
		}
		return true
	})
	return out
}

// awaitRemoval blocks until no slice shows the pod as ready.
func (n *Network) awaitRemoval(ctx context.Context, pod *corev1.Pod, services []types.NamespacedName) error {
	changed := make(chan struct{}, 1)
	defer n.slices.Subscribe(func(client.Event) { signal(changed) })()
	for n.shown(pod, services) {
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (n *Network) shown(pod *corev1.Pod, services []types.NamespacedName) bool {
	for _, key := range services {
		if svc, ok := client.Cached[*corev1.Service](n.services, key.Namespace, key.Name); ok && svc.Spec.PublishNotReadyAddresses {
			continue // its endpoints stay until the pod is gone, by the user's wish
		}
		for _, s := range n.slicesOf(key) {
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				if shows(e, pod) && isReady(e) {
					return true
				}
			}
		}
	}
	return false
}

// shownAt is the last revision of the slices that name the pod; of all slices of
// its services, if none does any more.
func (n *Network) shownAt(pod *corev1.Pod, services []types.NamespacedName) uint64 {
	var naming, any uint64
	for _, key := range services {
		for _, s := range n.slicesOf(key) {
			rev := revision(s.ResourceVersion)
			any = max(any, rev)
			for i := range s.Endpoints {
				if shows(&s.Endpoints[i], pod) {
					naming = max(naming, rev)
				}
			}
		}
	}
	if naming > 0 {
		return naming
	}
	return any
}

func shows(e *discoveryv1.Endpoint, pod *corev1.Pod) bool {
	if e.TargetRef != nil {
		return e.TargetRef.UID == pod.UID
	}
	for _, a := range e.Addresses {
		if a == pod.Status.PodIP {
			return true
		}
	}
	return false
}

// awaitQuiet blocks until no connection into the pod is in use, twice in a row: a
// client that chose the pod just before it was taken out may still be sending its
// SYN.
func (n *Network) awaitQuiet(ctx context.Context, addr netip.Addr) error {
	for quiet := 0; ; {
		count, active, err := n.cfg.Dataplane.Connections(ctx, addr)
		if err != nil {
			return err
		}
		if count == 0 || n.cfg.Clock.Since(active) > idleAfter {
			if quiet++; quiet == 2 {
				return nil
			}
		} else {
			quiet = 0
		}
		select {
		case <-n.cfg.Clock.After(countEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
