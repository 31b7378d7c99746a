// Package storageprotection takes the finalizers away that hold deleted storage
// back, once nobody uses it: claims while scheduled pods that have not ended mount
// them, volumes while they are bound, classes of attributes while claims or
// volumes name them. Admission puts the finalizers on; objects of older servers
// get them here.
package storageprotection

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// The finalizers.
const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
	classFinalizer  = "kubernetes.io/vac-protection"
)

var classes = client.Resource{Group: "storage.k8s.io", Version: "v1", Resource: "volumeattributesclasses"}

// NewClaims declares the controller of claims. Keys are claims.
func NewClaims() engine.Controller {
	return protector{
		name: "persistentvolumeclaim-protection-controller", resource: client.PersistentVolumeClaims, finalizer: claimFinalizer,
		watches: []engine.Watch{{Resource: client.Pods, Keys: claimsOfPod}},
		used: func(env *engine.Env, o client.Object) bool {
			found := false
			env.Cache(client.Pods).List(o.GetNamespace(), nil, func(p client.Object) bool {
				pod := p.(*corev1.Pod)
				found = holds(pod) && slices.Contains(mounted(pod), o.GetName())
				return !found
			})
			return found
		},
	}.controller()
}

// NewVolumes declares the controller of volumes. Keys are volumes.
func NewVolumes() engine.Controller {
	return protector{
		name: "persistentvolume-protection-controller", resource: client.PersistentVolumes, finalizer: volumeFinalizer,
		used: func(_ *engine.Env, o client.Object) bool {
			return o.(*corev1.PersistentVolume).Status.Phase == corev1.VolumeBound
		},
	}.controller()
}

// NewClasses declares the controller of classes of volume attributes. Keys are
// classes.
func NewClasses() engine.Controller {
	return protector{
		name: "volumeattributesclass-protection-controller", resource: classes, finalizer: classFinalizer,
		watches: []engine.Watch{
			{Resource: client.PersistentVolumeClaims, Keys: classesOf},
			{Resource: client.PersistentVolumes, Keys: classesOf},
		},
		used: func(env *engine.Env, o client.Object) bool {
			found := false
			for _, r := range []client.Resource{client.PersistentVolumeClaims, client.PersistentVolumes} {
				env.Cache(r).List("", nil, func(user client.Object) bool {
					found = found || slices.Contains(named(user), o.GetName())
					return !found
				})
			}
			return found
		},
	}.controller()
}

// protector is one of the three.
type protector struct {
	name      string
	resource  client.Resource
	finalizer string
	watches   []engine.Watch
	used      func(*engine.Env, client.Object) bool
}

func (p protector) controller() engine.Controller {
	return engine.Controller{
		Name: p.name, Watches: append([]engine.Watch{{Resource: p.resource, Keys: engine.Self}}, p.watches...),
		Writes: []engine.Write{{Resource: p.resource, Verbs: []string{"patch"}}},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return 0, p.reconcile(ctx, env, key) }
		},
	}
}

func (p protector) reconcile(ctx context.Context, env *engine.Env, key engine.Key) error {
	o, ok := env.Cache(p.resource).Get(key.Namespace, key.Name)
	if !ok {
		return nil
	}
	var finalizers []string
	switch has, deleted := slices.Contains(o.GetFinalizers(), p.finalizer), o.GetDeletionTimestamp() != nil; {
	case has && deleted && !p.used(env, o):
		finalizers = slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == p.finalizer })
	case !has && !deleted:
		finalizers = append(slices.Clone(o.GetFinalizers()), p.finalizer)
	default:
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": o.GetUID(), "resourceVersion": o.GetResourceVersion(), "finalizers": finalizers}})
	if err != nil {
		return err
	}
	k := client.Key{Resource: p.resource, Namespace: key.Namespace, Name: key.Name}
	if _, err := env.Client.Patch(ctx, k, client.Patch{Type: types.MergePatchType, Data: patch}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("protection of %s %s: %w", p.resource.Resource, key, err)
	}
	return nil
}

// holds tells whether a pod can have volumes mounted.
func holds(pod *corev1.Pod) bool { return pod.Spec.NodeName != "" && !engine.Finished(pod) }

// mounted lists the claims that a pod names, those of its ephemeral volumes too.
func mounted(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, pod.Name+"-"+v.Name)
		}
	}
	return names
}

func claimsOfPod(_ *engine.Env, ev client.Event) []engine.Key {
	pod := ev.Object.(*corev1.Pod)
	if ev.Type != client.Deleted && holds(pod) {
		return nil // it holds them: nothing can be let go
	}
	var keys []engine.Key
	for _, name := range mounted(pod) {
		keys = append(keys, engine.Key{Namespace: pod.Namespace, Name: name})
	}
	return keys
}

// named lists the classes that a claim or volume names.
func named(o client.Object) []string {
	var out []string
	add := func(p *string) {
		if p != nil && *p != "" {
			out = append(out, *p)
		}
	}
	switch o := o.(type) {
	case *corev1.PersistentVolume:
		add(o.Spec.VolumeAttributesClassName)
	case *corev1.PersistentVolumeClaim:
		add(o.Spec.VolumeAttributesClassName)
		add(o.Status.CurrentVolumeAttributesClassName)
		if s := o.Status.ModifyVolumeStatus; s != nil {
			add(&s.TargetVolumeAttributesClassName)
		}
	}
	return out
}

// classesOf are the classes that an object has ceased to name.
func classesOf(_ *engine.Env, ev client.Event) []engine.Key {
	var keys []engine.Key
	for _, o := range []client.Object{ev.Object, ev.Old} {
		if o == nil {
			continue
		}
		for _, name := range named(o) {
			keys = append(keys, engine.Key{Name: name})
		}
	}
	return keys
}
