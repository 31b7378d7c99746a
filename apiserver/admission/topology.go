package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/registry"
)

// podTopology labels pods with the zone and the region of the node that they are
// bound to, or created on.
func podTopology(d Deps) registry.Admission {
	return registry.Admission{Name: "PodTopologyLabels", Mutate: func(_ context.Context, a *registry.Attributes) error {
		if a.Resource.GVR() != pods || a.Operation != registry.Create {
			return nil
		}
		var meta *metav1.ObjectMeta
		var name string
		switch a.Subresource {
		case "":
			pod, ok := a.Object.(*corev1.Pod)
			if !ok {
				return nil
			}
			meta, name = &pod.ObjectMeta, pod.Spec.NodeName
		case "binding":
			b, ok := a.Body.(*corev1.Binding)
			if !ok {
				return nil
			}
			meta, name = &b.ObjectMeta, b.Target.Name
		}
		if name == "" {
			return nil
		}
		node, ok := d.Lookup(nodes, "", name).(*corev1.Node)
		if !ok {
			return nil // whoever binds to a node that is not there is told otherwise
		}
		for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
			if v, ok := node.Labels[key]; ok {
				metav1.SetMetaDataLabel(meta, key, v)
			}
		}
		return nil
	}}
}
