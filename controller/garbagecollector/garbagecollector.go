// Package garbagecollector deletes what nobody owns any more.
//
// It follows the owner references of all objects in a graph (graph.go). An
// object is looked at when an owner of it goes, when an owner begins to wait for
// it, when its references change, and when it is itself being deleted with a
// finalizer of this controller:
//
//	foregroundDeletion  dependents first, then the object
//	orphan              the dependents lose their reference to it, then it goes
//	neither             the object is gone; its dependents follow (background)
//
// An owner that the graph does not know is asked for at the server, by name and
// uid, before anything is deleted.
package garbagecollector

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// New declares the controller. Keys are uids.
func New() engine.Controller {
	var mu sync.Mutex
	graphs := map[*engine.Env]*graph{} // one a run: Watches and New meet here
	of := func(env *engine.Env) *graph {
		mu.Lock()
		defer mu.Unlock()
		if graphs[env] == nil {
			graphs[env] = newGraph()
		}
		return graphs[env]
	}
	return engine.Controller{
		Name: "garbage-collector-controller",
		Watches: []engine.Watch{{All: true, KeysOf: func(env *engine.Env, r client.Resource, ev client.Event) []engine.Key {
			if ev.Type == client.Deleted {
				return keys(of(env).remove(ev.Object.GetUID()))
			}
			return keys(of(env).set(r, ev.Object))
		}}},
		Writes:  []engine.Write{{Verbs: []string{"delete", "patch"}}},
		Workers: 16,
		New: func(env *engine.Env) engine.Reconcile {
			c := &collector{env: env, graph: of(env)}
			return c.reconcile
		},
	}
}

func keys(uids []types.UID) []engine.Key {
	var out []engine.Key
	for _, uid := range uids {
		out = append(out, engine.Key{Name: string(uid)})
	}
	return out
}

type collector struct {
	env   *engine.Env
	graph *graph

	mu    sync.Mutex
	kinds map[schema.GroupKind]client.ResourceInfo
}

func (c *collector) reconcile(ctx context.Context, key engine.Key) (time.Duration, error) {
	v, ok := c.graph.get(types.UID(key.Name))
	if !ok {
		return 0, nil
	}
	obj, ok := c.env.Cache(v.key.Resource).Get(v.key.Namespace, v.key.Name)
	if !ok || obj.GetUID() != v.uid {
		return 0, nil
	}
	switch {
	case orphaning(obj):
		return 0, c.orphan(ctx, v, obj)
	case foreground(obj):
		return 0, c.waitForDependents(ctx, v, obj)
	case obj.GetDeletionTimestamp() != nil:
		return 0, nil
	}
	return 0, c.judge(ctx, v, obj)
}

// orphan frees the dependents of an object and lets it go.
func (c *collector) orphan(ctx context.Context, v vertex, obj client.Object) error {
	deps, _ := c.graph.of(v.uid)
	_, err := engine.Parallel(len(deps), func(i int) error {
		d, ok := c.env.Cache(deps[i].key.Resource).Get(deps[i].key.Namespace, deps[i].key.Name)
		if !ok || d.GetUID() != deps[i].uid {
			return nil
		}
		return c.dropOwners(ctx, deps[i], d, func(ref metav1.OwnerReference) bool { return ref.UID == v.uid })
	})
	if err != nil {
		return err
	}
	return c.dropFinalizer(ctx, v, obj, metav1.FinalizerOrphanDependents)
}

// waitForDependents deletes the dependents and, when none blocks any more, lets
// the object go.
func (c *collector) waitForDependents(ctx context.Context, v vertex, obj client.Object) error {
	deps, blocking := c.graph.of(v.uid)
	for _, d := range deps {
		c.env.Enqueue(engine.Key{Name: string(d.uid)})
	}
	if blocking > 0 {
		return nil
	}
	return c.dropFinalizer(ctx, v, obj, metav1.FinalizerDeleteDependents)
}

// judge decides about an object that has owners and is not being deleted.
func (c *collector) judge(ctx context.Context, v vertex, obj client.Object) error {
	var solid, waiting int
	lost := map[types.UID]bool{}
	for _, ref := range obj.GetOwnerReferences() {
		owner, known := c.graph.get(ref.UID)
		if known && owner.foreground {
			waiting++
			lost[ref.UID] = true
			continue
		}
		exists := known
		if !known {
			var err error
			if exists, err = c.exists(ctx, ref, v.key.Namespace); err != nil {
				return err
			}
		}
		if exists {
			solid++
		} else {
			lost[ref.UID] = true
		}
	}
	switch {
	case len(lost) == 0:
		return nil
	case solid > 0:
		return c.dropOwners(ctx, v, obj, func(ref metav1.OwnerReference) bool { return lost[ref.UID] })
	}
	policy := metav1.DeletePropagationBackground
	if deps, _ := c.graph.of(v.uid); waiting > 0 && len(deps) > 0 {
		if slices.ContainsFunc(deps, func(d vertex) bool { return d.foreground }) && slices.ContainsFunc(obj.GetOwnerReferences(), blocks) {
			// Perhaps a circle, in which each waits for the next: this one lets go.
			// The change of its references brings it back here.
			return c.unblockOwners(ctx, v, obj)
		}
		policy = metav1.DeletePropagationForeground
	} else if slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents) {
		policy = metav1.DeletePropagationOrphan
	} else if slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents) {
		policy = metav1.DeletePropagationForeground
	}
	rv := obj.GetResourceVersion() // a reference that was added meanwhile saves it
	err := c.env.Client.Delete(ctx, v.key, metav1.DeleteOptions{PropagationPolicy: &policy, Preconditions: &metav1.Preconditions{UID: &v.uid, ResourceVersion: &rv}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting %s, whose owners are gone: %w", v.key, err)
	}
	return nil
}

// exists asks the server for an owner.
func (c *collector) exists(ctx context.Context, ref metav1.OwnerReference, namespace string) (bool, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return true, nil // nonsense owns: deleting on a guess would be worse
	}
	info, err := c.resource(ctx, schema.GroupKind{Group: gv.Group, Kind: ref.Kind})
	if err != nil {
		return false, err
	}
	k := client.Key{Resource: info.Resource, Name: ref.Name}
	if info.Namespaced {
		if namespace == "" {
			return true, nil // a cluster-scoped object cannot have this owner; leave it
		}
		k.Namespace = namespace
	}
	owner, err := c.env.Client.Get(ctx, k)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking for the owner %s: %w", k, err)
	}
	return owner.GetUID() == ref.UID, nil
}

func (c *collector) resource(ctx context.Context, gk schema.GroupKind) (client.ResourceInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if info, ok := c.kinds[gk]; ok && !info.Extension { // extensions are withdrawn while their objects live on
		return info, nil
	}
	infos, err := c.env.Client.Resources(ctx)
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return client.ResourceInfo{}, fmt.Errorf("listing the served resources: %w", err)
	}
	c.kinds = map[schema.GroupKind]client.ResourceInfo{}
	for _, info := range infos {
		c.kinds[schema.GroupKind{Group: info.Resource.Group, Kind: info.Kind}] = info
	}
	info, ok := c.kinds[gk]
	if !ok && err != nil {
		return info, fmt.Errorf("looking for an owner of the kind %s: %w", gk, err)
	}
	if !ok {
		return info, fmt.Errorf("an owner reference names the kind %s, which is not served", gk)
	}
	return info, nil
}

func (c *collector) dropOwners(ctx context.Context, v vertex, obj client.Object, drop func(metav1.OwnerReference) bool) error {
	left := slices.DeleteFunc(slices.Clone(obj.GetOwnerReferences()), drop)
	return c.patch(ctx, v, obj, "ownerReferences", left, len(left) == 0)
}

// unblockOwners lets the owners of an object go before it.
func (c *collector) unblockOwners(ctx context.Context, v vertex, obj client.Object) error {
	refs := slices.Clone(obj.GetOwnerReferences())
	for i := range refs {
		refs[i].BlockOwnerDeletion = nil
	}
	return c.patch(ctx, v, obj, "ownerReferences", refs, false)
}

func (c *collector) dropFinalizer(ctx context.Context, v vertex, obj client.Object, name string) error {
	left := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == name })
	return c.patch(ctx, v, obj, "finalizers", left, len(left) == 0)
}

func (c *collector) patch(ctx context.Context, v vertex, obj client.Object, field string, value any, none bool) error {
	if none {
		value = nil
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": v.uid, "resourceVersion": obj.GetResourceVersion(), field: value}})
	if err != nil {
		return err
	}
	_, err = c.env.Client.Patch(ctx, v.key, client.Patch{Type: types.MergePatchType, Data: data})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("changing the %s of %s: %w", field, v.key, err)
	}
	return nil
}
