package agent

import (
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
)

// objects reads what pods refer to: from caches, and from the API when a cache
// has not seen an object yet.
type objects struct {
	client  client.Interface
	svcs    client.Cache
	changed func(client.Event) // called with each change of an object that a pod may name

	each bool // a cache for each object that a pod names
	mu   sync.Mutex
	refs map[ref]*followed
	pods map[types.UID][]ref
}

// ref names a ConfigMap or Secret.
type ref struct {
	resource        client.Resource
	namespace, name string
}

// followed is an object that pods name.
type followed struct {
	cache client.Cache
	end   func()
	pods  int
}

func newObjects(c client.Interface, each bool) *objects {
	return &objects{client: c, svcs: c.Cache(client.Services, ""), each: each, refs: map[ref]*followed{}, pods: map[types.UID][]ref{}}
}

// follow calls changed with each change, until the returned function is called.
func (o *objects) follow(changed func(client.Event)) (end func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changed = changed
	if !o.each {
		for _, r := range []client.Resource{client.ConfigMaps, client.Secrets} {
			c := o.client.Cache(r, "")
			o.refs[ref{resource: r}] = &followed{cache: c, end: c.Subscribe(changed)}
		}
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for r, f := range o.refs {
			f.end()
			delete(o.refs, r)
		}
		o.changed = nil
	}
}

// hold follows what a pod names, from before its start until release.
func (o *objects) hold(pod *corev1.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, held := o.pods[pod.UID]; held || !o.each || o.changed == nil {
		return
	}
	list := references(pod)
	o.pods[pod.UID] = list
	for _, r := range list {
		f := o.refs[r]
		if f == nil {
			c := o.client.Cache(r.resource, "metadata.namespace="+r.namespace+",metadata.name="+r.name)
			f = &followed{cache: c, end: c.Subscribe(o.changed)}
			o.refs[r] = f
		}
		f.pods++
	}
}

// release undoes hold.
func (o *objects) release(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.pods[uid] {
		if f := o.refs[r]; f != nil {
			if f.pods--; f.pods == 0 {
				f.end()
				delete(o.refs, r)
			}
		}
	}
	delete(o.pods, uid)
}

// cached finds an object in its cache.
func (o *objects) cached(r ref) (client.Object, bool) {
	o.mu.Lock()
	f := o.refs[r]
	if f == nil {
		f = o.refs[ref{resource: r.resource}]
	}
	o.mu.Unlock()
	if f == nil {
		return nil, false
	}
	return f.cache.Get(r.namespace, r.name)
}

// ConfigMap implements volumes.Objects.
func (o *objects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	if obj, ok := o.cached(ref{client.ConfigMaps, namespace, name}); ok {
		if cm, ok := obj.(*corev1.ConfigMap); ok {
			return cm, nil
		}
	}
	cm, err := client.Get[*corev1.ConfigMap](ctx, o.client, client.Key{Resource: client.ConfigMaps, Namespace: namespace, Name: name})
	return cm, plain(err, "configmap", name)
}

// Secret implements volumes.Objects.
func (o *objects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	if obj, ok := o.cached(ref{client.Secrets, namespace, name}); ok {
		if s, ok := obj.(*corev1.Secret); ok {
			return s, nil
		}
	}
	s, err := client.Get[*corev1.Secret](ctx, o.client, client.Key{Resource: client.Secrets, Namespace: namespace, Name: name})
	return s, plain(err, "secret", name)
}

// plain names the kind in the singular, as users of Kubernetes know the message.
func plain(err error, kind, name string) error {
	if apierrors.IsNotFound(err) {
		gr := corev1.Resource(kind)
		return apierrors.NewNotFound(gr, name)
	}
	return err
}

func (o *objects) services(namespace string) []*corev1.Service {
	return client.ListCached[*corev1.Service](o.svcs, namespace, nil)
}

// refers tells whether a pod's volumes or environment use the object.
func refers(pod *corev1.Pod, obj client.Object) bool {
	if pod.Namespace != obj.GetNamespace() {
		return false
	}
	r := ref{client.ConfigMaps, obj.GetNamespace(), obj.GetName()}
	if _, secret := obj.(*corev1.Secret); secret {
		r.resource = client.Secrets
	}
	return slices.Contains(references(pod), r)
}

// references lists what a pod's volumes and environment use, each once.
func references(pod *corev1.Pod) []ref {
	var out []ref
	add := func(resource client.Resource, name string) {
		if r := (ref{resource, pod.Namespace, name}); name != "" && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			add(client.ConfigMaps, v.ConfigMap.Name)
		case v.Secret != nil:
			add(client.Secrets, v.Secret.SecretName)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					add(client.ConfigMaps, s.ConfigMap.Name)
				}
				if s.Secret != nil {
					add(client.Secrets, s.Secret.Name)
				}
			}
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			environment(&list[i], add)
		}
	}
	return out
}

// environment adds what a container's environment uses.
func environment(c *corev1.Container, add func(client.Resource, string)) {
	for _, f := range c.EnvFrom {
		if f.ConfigMapRef != nil {
			add(client.ConfigMaps, f.ConfigMapRef.Name)
		}
		if f.SecretRef != nil {
			add(client.Secrets, f.SecretRef.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			add(client.ConfigMaps, r.Name)
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			add(client.Secrets, r.Name)
		}
	}
}
