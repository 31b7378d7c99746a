package agent

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/client"
)

// objects reads what pods refer to: from the caches, and from the API when a
// cache has not seen an object yet.
type objects struct {
	client              client.Interface
	configMaps, secrets client.Cache
	svcs                client.Cache
}

func newObjects(c client.Interface) *objects {
	return &objects{client: c, configMaps: c.Cache(client.ConfigMaps, ""), secrets: c.Cache(client.Secrets, ""), svcs: c.Cache(client.Services, "")}
}

// ConfigMap implements volumes.Objects.
func (o *objects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	if cm, ok := client.Cached[*corev1.ConfigMap](o.configMaps, namespace, name); ok {
		return cm, nil
	}
	cm, err := client.Get[*corev1.ConfigMap](ctx, o.client, client.Key{Resource: client.ConfigMaps, Namespace: namespace, Name: name})
	return cm, plain(err, "configmap", name)
}

// Secret implements volumes.Objects.
func (o *objects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	if s, ok := client.Cached[*corev1.Secret](o.secrets, namespace, name); ok {
		return s, nil
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
	_, secret := obj.(*corev1.Secret)
	name := obj.GetName()
	is := func(cm, s string) bool { return !secret && cm == name || secret && s == name }
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil && is(v.ConfigMap.Name, ""), v.Secret != nil && is("", v.Secret.SecretName):
			return true
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil && is(s.ConfigMap.Name, "") || s.Secret != nil && is("", s.Secret.Name) {
					return true
				}
			}
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if envRefers(&list[i], is) {
				return true
			}
		}
	}
	return false
}

func envRefers(c *corev1.Container, is func(cm, s string) bool) bool {
	for _, f := range c.EnvFrom {
		if f.ConfigMapRef != nil && is(f.ConfigMapRef.Name, "") || f.SecretRef != nil && is("", f.SecretRef.Name) {
			return true
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil && is(r.Name, "") {
			return true
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil && is("", r.Name) {
			return true
		}
	}
	return false
}
