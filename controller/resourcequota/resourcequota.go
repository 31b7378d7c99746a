// Package resourcequota keeps the status of resource quotas: what is limited and
// how much of it is in use.
//
// Admission adds to the use as it grants requests; this controller counts anew
// when a quota is made or changed, when an object goes or a pod ends, and a
// little after each grant, because a granted request may still have failed.
package resourcequota

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"knarr.dev/knarr/api/quota"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// settle is how long after a grant the use is counted anew.
const settle = 5 * time.Second

// New declares the controller. Keys are quotas.
func New() engine.Controller {
	return engine.Controller{
		Name: "resourcequota-controller",
		Watches: []engine.Watch{
			{Resource: client.ResourceQuotas, Keys: quotaChanged},
			{All: true, KeysOf: freed},
		},
		Writes:  []engine.Write{{Resource: client.ResourceQuotas, Subresource: "status", Verbs: []string{"update"}}},
		Workers: 2,
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return reconcile(ctx, env, key) }
		},
	}
}

func quotaChanged(env *engine.Env, ev client.Event) []engine.Key {
	q := ev.Object.(*corev1.ResourceQuota)
	key := engine.KeyOf(q)
	switch {
	case ev.Type == client.Deleted:
		return nil
	case ev.Type == client.Added, !equality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard):
		return []engine.Key{key}
	case !equality.Semantic.DeepEqual(q.Status.Used, ev.Old.(*corev1.ResourceQuota).Status.Used):
		env.EnqueueAfter(key, settle)
	}
	return nil
}

// freed names the quotas of a namespace in which something was given back.
func freed(env *engine.Env, r client.Resource, ev client.Event) []engine.Key {
	namespace := ev.Object.GetNamespace()
	if namespace == "" || ev.Type == client.Added || ev.Type == client.Modified && !gaveBack(r, ev) {
		return nil
	}
	var keys []engine.Key
	env.Cache(client.ResourceQuotas).List(namespace, nil, func(o client.Object) bool {
		keys = append(keys, engine.KeyOf(o))
		return true
	})
	return keys
}

func gaveBack(r client.Resource, ev client.Event) bool {
	switch ev.Object.(type) {
	case *corev1.Pod, *corev1.Service, *corev1.PersistentVolumeClaim:
		return !equality.Semantic.DeepEqual(quota.Usage(r.GroupResource(), ev.Object), quota.Usage(r.GroupResource(), ev.Old))
	}
	return false
}

func reconcile(ctx context.Context, env *engine.Env, key engine.Key) (time.Duration, error) {
	q, ok := client.Cached[*corev1.ResourceQuota](env.Cache(client.ResourceQuotas), key.Namespace, key.Name)
	if !ok {
		return 0, nil
	}
	used, err := count(ctx, env, q)
	if err != nil {
		return 0, fmt.Errorf("counting for resource quota %s: %w", key, err)
	}
	status := corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: used}
	if equality.Semantic.DeepEqual(q.Status, status) {
		return 0, nil
	}
	next := q.DeepCopy()
	next.Status = status
	k := client.Key{Resource: client.ResourceQuotas, Namespace: q.Namespace, Name: q.Name, Subresource: "status"}
	if _, err := env.Client.Update(ctx, k, next); err != nil && !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("writing the status of resource quota %s: %w", key, err)
	}
	return 0, nil
}

// count adds up what the objects of the quota's namespace take of it.
func count(ctx context.Context, env *engine.Env, q *corev1.ResourceQuota) (corev1.ResourceList, error) {
	used := corev1.ResourceList{}
	for n := range q.Spec.Hard {
		used[n] = resource.Quantity{Format: resource.DecimalSI}
	}
	resources, err := counted(ctx, env, q.Spec.Hard)
	if err != nil {
		return nil, err
	}
	for _, r := range resources {
		cache := env.Cache(r)
		if err := cache.WaitSynced(ctx); err != nil {
			return nil, err
		}
		cache.List(q.Namespace, nil, func(o client.Object) bool {
			if quota.Falls(q, o) {
				quota.Add(used, quota.Only(quota.Usage(r.GroupResource(), o), used))
			}
			return true
		})
	}
	return used, nil
}

// counted are the resources whose objects take anything of what is limited.
func counted(ctx context.Context, env *engine.Env, hard corev1.ResourceList) ([]client.Resource, error) {
	var out []client.Resource
	var generic []string
	for n := range hard {
		rest, isCount := strings.CutPrefix(string(n), "count/")
		if isCount {
			generic = append(generic, rest)
			continue
		}
		r := client.Pods
		switch name := string(n); {
		case strings.HasPrefix(name, "services"):
			r = client.Services
		case name == "persistentvolumeclaims", name == "requests.storage", strings.Contains(name, ".storageclass.storage.k8s.io/"):
			r = client.PersistentVolumeClaims
		case name == "replicationcontrollers", name == "resourcequotas", name == "secrets", name == "configmaps":
			r = client.Resource{Version: "v1", Resource: name}
		}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	if len(generic) == 0 {
		return out, nil
	}
	served, err := env.Client.Resources(ctx)
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("listing the served resources: %w", err)
	}
	for _, s := range generic {
		gr := schema.ParseGroupResource(s)
		at := slices.IndexFunc(served, func(i client.ResourceInfo) bool { return i.Namespaced && i.Resource.GroupResource() == gr })
		if at >= 0 && !slices.Contains(out, served[at].Resource) {
			out = append(out, served[at].Resource)
		}
	}
	return out, nil
}
