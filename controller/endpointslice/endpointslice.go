// Package endpointslice keeps the EndpointSlices and the Endpoints of services
// that select pods, and mirrors handwritten Endpoints of those that do not.
//
// A terminating pod stays in its slice until it is gone: not ready from the
// moment of its deletion, but serving while it is, so that the data path can
// drain it.
package endpointslice

import (
	"context"
	"fmt"
	"maps"
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
	manager     = "endpointslice-controller.k8s.io"
	triggerTime = corev1.EndpointsLastChangeTriggerTime
)

// New declares the controller of slices. Keys are services.
func New() engine.Controller {
	return engine.Controller{
		Name: "endpointslice-controller",
		Watches: []engine.Watch{
			{Resource: client.Services, Keys: engine.Self},
			{Resource: client.Pods, Keys: servicesOf},
			{Resource: client.EndpointSlices, Keys: sliceGone},
			{Resource: client.Nodes},
		},
		Writes:  []engine.Write{{Resource: client.EndpointSlices, Verbs: []string{"create", "update", "delete"}}},
		Workers: 5,
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return reconcile(ctx, env, key) }
		},
	}
}

// servicesOf maps a pod to the services that select it, now or before.
func servicesOf(env *engine.Env, ev client.Event) []engine.Key {
	pod := ev.Object.(*corev1.Pod)
	if old, ok := ev.Old.(*corev1.Pod); ok && ev.Type == client.Modified && !matters(old, pod) {
		return nil
	}
	var keys []engine.Key
	env.Cache(client.Services).List(pod.Namespace, nil, func(o client.Object) bool {
		svc := o.(*corev1.Service)
		if selects(svc, pod.Labels) || (ev.Old != nil && selects(svc, ev.Old.GetLabels())) {
			keys = append(keys, engine.KeyOf(svc))
		}
		return true
	})
	return keys
}

// matters tells whether a change of a pod can change a slice.
func matters(a, b *corev1.Pod) bool {
	return !maps.Equal(a.Labels, b.Labels) || engine.Ready(a) != engine.Ready(b) || a.Status.PodIP != b.Status.PodIP ||
		len(a.Status.PodIPs) != len(b.Status.PodIPs) || a.Spec.NodeName != b.Spec.NodeName || engine.Finished(a) != engine.Finished(b) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil)
}

func selects(svc *corev1.Service, l map[string]string) bool {
	return len(svc.Spec.Selector) > 0 && svc.Spec.Type != corev1.ServiceTypeExternalName &&
		labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(l))
}

// sliceGone repairs slices that somebody else changed or deleted.
func sliceGone(_ *engine.Env, ev client.Event) []engine.Key {
	s := ev.Object
	if s.GetLabels()[discoveryv1.LabelManagedBy] != manager || ev.Type == client.Added {
		return nil
	}
	return []engine.Key{{Namespace: s.GetNamespace(), Name: s.GetLabels()[discoveryv1.LabelServiceName]}}
}

func reconcile(ctx context.Context, env *engine.Env, key engine.Key) (time.Duration, error) {
	svc, ok := client.Cached[*corev1.Service](env.Cache(client.Services), key.Namespace, key.Name)
	if !ok || len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
		return 0, nil // the slices of a deleted service go with it: it owns them
	}
	pods := client.ListCached[*corev1.Pod](env.Cache(client.Pods), svc.Namespace, labels.SelectorFromSet(svc.Spec.Selector))
	want := compute(svc, pods, func(node string) string {
		if n, ok := env.Cache(client.Nodes).Get("", node); ok {
			return n.GetLabels()[corev1.LabelTopologyZone]
		}
		return ""
	})
	pending, again := env.Ledger.Pending(key)
	have := client.ListCached[*discoveryv1.EndpointSlice](env.Cache(client.EndpointSlices), svc.Namespace,
		labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: manager}))
	have = append(have, engine.Unseen(pending, have)...)
	at := lastTrigger(svc, pods)
	create, update, remove := pack(have, want)
	for _, s := range create {
		decorate(svc, s, at)
		s.Namespace, s.GenerateName = svc.Namespace, svc.Name+"-"
		s.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))}
		obj, err := env.Client.Create(ctx, client.Key{Resource: client.EndpointSlices, Namespace: svc.Namespace}, s)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("creating a slice of service %s: %w", key, err)
		}
		env.Ledger.Created(key, env.Cache(client.EndpointSlices), obj)
	}
	byName := map[string]*discoveryv1.EndpointSlice{}
	for _, s := range have {
		byName[s.Name] = s
	}
	for _, s := range update {
		old := byName[s.Name]
		decorate(svc, s, old.Annotations[triggerTime])
		if equality.Semantic.DeepEqual(old, s) {
			continue
		}
		decorate(svc, s, at)
		if _, err := env.Client.Update(ctx, client.Key{Resource: client.EndpointSlices, Namespace: s.Namespace, Name: s.Name}, s); err != nil {
			return 0, fmt.Errorf("updating slice %s/%s: %w", s.Namespace, s.Name, err)
		}
	}
	for _, s := range remove {
		err := env.Client.Delete(ctx, client.Key{Resource: client.EndpointSlices, Namespace: s.Namespace, Name: s.Name}, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return 0, fmt.Errorf("deleting slice %s/%s: %w", s.Namespace, s.Name, err)
		}
	}
	return again, nil
}

// decorate sets the labels and annotations that a service's slices carry.
func decorate(svc *corev1.Service, s *discoveryv1.EndpointSlice, at string) {
	s.Labels = maps.Clone(svc.Labels)
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Labels[discoveryv1.LabelServiceName] = svc.Name
	s.Labels[discoveryv1.LabelManagedBy] = manager
	delete(s.Labels, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		s.Labels[corev1.IsHeadlessService] = ""
	}
	s.Annotations = maps.Clone(s.Annotations)
	delete(s.Annotations, triggerTime)
	if at != "" {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[triggerTime] = at
	}
	if len(s.Annotations) == 0 {
		s.Annotations = nil
	}
}

// lastTrigger is when the latest cause of a change happened: the service's
// creation, or a pod's change of readiness.
func lastTrigger(svc *corev1.Service, pods []*corev1.Pod) string {
	at := svc.CreationTimestamp.Time
	for _, p := range pods {
		if c := engine.Condition(p, corev1.PodReady); c != nil && c.LastTransitionTime.After(at) {
			at = c.LastTransitionTime.Time
		}
	}
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339Nano)
}
