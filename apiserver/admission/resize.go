package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"knarr.dev/knarr/apiserver/registry"
)

// Features that a node declares if its agent can change more of a pod in place than
// the containers that run.
const (
	resizesPods           = "InPlacePodLevelResourcesVerticalScaling"
	resizesInitContainers = "InPlacePodVerticalScalingInitContainers"
)

// podResize refuses to resize a pod to what its node cannot do, and to more than the
// node has at all. Whether there is room at the moment is the node's to say.
func podResize(d Deps) registry.Admission {
	return registry.Admission{Name: "PodResize", Validate: func(_ context.Context, a *registry.Attributes) error {
		if a.Resource.GVR() != pods || a.Subresource != "resize" || a.Operation != registry.Update {
			return nil
		}
		pod, old := a.Object.(*corev1.Pod), a.Old.(*corev1.Pod)
		if pod.Spec.NodeName == "" || equality.Semantic.DeepEqual(pod.Spec, old.Spec) {
			return nil
		}
		node, ok := d.Lookup(nodes, "", pod.Spec.NodeName).(*corev1.Node)
		if !ok {
			return refusePod(a, "node %q not found", pod.Spec.NodeName)
		}
		if lacking := lackingFeatures(pod, old, node); len(lacking) > 0 {
			return refusePod(a, "pod update requires features %s which are not available on node %q", strings.Join(lacking, ", "), node.Name)
		}
		if missing := tooMuch(pod, node); len(missing) > 0 {
			err := apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf("node didn't have enough allocatable resources: %s", strings.Join(missing, "; ")))
			err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: "NodeCapacity"}}
			return err
		}
		return nil
	}}
}

func lackingFeatures(pod, old *corev1.Pod, node *corev1.Node) (out []string) {
	need := func(feature string, needed bool) {
		if needed && !slices.Contains(node.Status.DeclaredFeatures, feature) {
			out = append(out, feature)
		}
	}
	need(resizesPods, !equality.Semantic.DeepEqual(pod.Spec.Resources, old.Spec.Resources))
	need(resizesInitContainers, slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		return !sidecar && !slices.ContainsFunc(old.Spec.InitContainers, func(o corev1.Container) bool {
			return o.Name == c.Name && equality.Semantic.DeepEqual(o.Resources, c.Resources)
		})
	}))
	return out
}

// tooMuch says what of a pod's requests exceeds all that its node has: processors in
// thousandths, memory in bytes.
func tooMuch(pod *corev1.Pod, node *corev1.Node) (out []string) {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	for _, r := range []struct {
		name  corev1.ResourceName
		value func(*resource.Quantity) int64
	}{{corev1.ResourceCPU, (*resource.Quantity).MilliValue}, {corev1.ResourceMemory, (*resource.Quantity).Value}} {
		want, have := requests[r.name], node.Status.Allocatable[r.name]
		if w, h := r.value(&want), r.value(&have); w > h {
			out = append(out, fmt.Sprintf("%s, requested: %d, allocatable: %d", r.name, w, h))
		}
	}
	return out
}
