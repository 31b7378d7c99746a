// Package quota is the arithmetic of resource quotas: what an object uses, which
// quotas it falls under, and what would exceed them. Pure functions; admission
// and the quota controller share them.
package quota

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
)

// countPrefix begins the names that count the objects of any resource:
// count/deployments.apps, count/pods.
const countPrefix = "count/"

// legacy are the resources that quotas count under their bare name too.
var legacy = map[schema.GroupResource]corev1.ResourceName{
	{Resource: "services"}:               corev1.ResourceServices,
	{Resource: "replicationcontrollers"}: corev1.ResourceReplicationControllers,
	{Resource: "resourcequotas"}:         corev1.ResourceQuotas,
	{Resource: "secrets"}:                corev1.ResourceSecrets,
	{Resource: "configmaps"}:             corev1.ResourceConfigMaps,
	{Resource: "persistentvolumeclaims"}: corev1.ResourcePersistentVolumeClaims,
	{Resource: "pods"}:                   corev1.ResourcePods,
}

// Count is the name under which quotas count the objects of a resource.
func Count(gr schema.GroupResource) corev1.ResourceName {
	if gr.Group == "" {
		return corev1.ResourceName(countPrefix + gr.Resource)
	}
	return corev1.ResourceName(countPrefix + gr.Resource + "." + gr.Group)
}

// Usage is what an object takes of quotas.
func Usage(gr schema.GroupResource, obj kind.Object) corev1.ResourceList {
	one := *resource.NewQuantity(1, resource.DecimalSI)
	used := corev1.ResourceList{Count(gr): one}
	if name, ok := legacy[gr]; ok && gr.Resource != "pods" {
		used[name] = one
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		podUsage(used, o)
	case *corev1.Service:
		serviceUsage(used, o)
	case *corev1.PersistentVolumeClaim:
		claimUsage(used, o)
	}
	return used
}

func serviceUsage(used corev1.ResourceList, s *corev1.Service) {
	ports := int64(0)
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		ports = int64(len(s.Spec.Ports))
	case corev1.ServiceTypeLoadBalancer:
		used[corev1.ResourceServicesLoadBalancers] = *resource.NewQuantity(1, resource.DecimalSI)
		if a := s.Spec.AllocateLoadBalancerNodePorts; a == nil || *a {
			ports = int64(len(s.Spec.Ports))
		} else {
			for _, p := range s.Spec.Ports {
				if p.NodePort != 0 {
					ports++
				}
			}
		}
	}
	if ports > 0 {
		used[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(ports, resource.DecimalSI)
	}
}

// classInfix stands between a storage class and what is limited of it.
const classInfix = ".storageclass.storage.k8s.io/"

func claimUsage(used corev1.ResourceList, c *corev1.PersistentVolumeClaim) {
	class := ""
	if c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	} else {
		class = c.Annotations[corev1.BetaStorageClassAnnotation]
	}
	if class != "" {
		used[corev1.ResourceName(class+classInfix+"persistentvolumeclaims")] = *resource.NewQuantity(1, resource.DecimalSI)
	}
	size, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]
	if !ok {
		return
	}
	if given, ok := c.Status.AllocatedResources[corev1.ResourceStorage]; ok && given.Cmp(size) > 0 {
		size = given // a volume that is being made smaller still takes its place
	}
	used[corev1.ResourceRequestsStorage] = size
	if class != "" {
		used[corev1.ResourceName(class+classInfix+"requests.storage")] = size
	}
}

// Names returns the keys of l, sorted.
func Names(l corev1.ResourceList) []corev1.ResourceName {
	out := make([]corev1.ResourceName, 0, len(l))
	for n := range l {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Only returns the part of l whose names are in names.
func Only(l, names corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for n, q := range l {
		if _, ok := names[n]; ok {
			out[n] = q
		}
	}
	return out
}

// Add adds b to a.
func Add(a, b corev1.ResourceList) {
	for n, q := range b {
		sum := a[n]
		sum.Add(q)
		a[n] = sum
	}
}

// Minus returns a - b, for the names of either.
func Minus(a, b corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for n, q := range a {
		out[n] = q.DeepCopy()
	}
	for n, q := range b {
		left := out[n]
		left.Sub(q)
		out[n] = left
	}
	return out
}

// Exceeded names what used + delta would have more of than hard allows.
func Exceeded(hard, used, delta corev1.ResourceList) []corev1.ResourceName {
	var out []corev1.ResourceName
	for _, n := range Names(delta) {
		d := delta[n]
		if d.Sign() <= 0 {
			continue // what shrinks may always shrink
		}
		sum := used[n]
		sum.Add(d)
		if most, ok := hard[n]; ok && sum.Cmp(most) > 0 {
			out = append(out, n)
		}
	}
	return out
}

// Print writes the named quantities as messages do: "cpu=1,pods=2".
func Print(l corev1.ResourceList, names []corev1.ResourceName) string {
	var words []string
	for _, n := range names {
		q := l[n]
		words = append(words, string(n)+"="+q.String())
	}
	return strings.Join(words, ",")
}
