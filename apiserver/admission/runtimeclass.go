package admission

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"knarr.dev/knarr/apiserver/registry"
)

var runtimeClasses = nodev1.SchemeGroupVersion.WithResource("runtimeclasses")

// runtimeClass gives pods what their RuntimeClass costs and where it runs, and
// refuses what does not agree with it.
func runtimeClass(d Deps) registry.Admission {
	find := func(a *registry.Attributes, pod *corev1.Pod) (*nodev1.RuntimeClass, error) {
		name := pod.Spec.RuntimeClassName
		if name == nil || *name == "" {
			return nil, nil
		}
		rc, ok := d.Lookup(runtimeClasses, "", *name).(*nodev1.RuntimeClass)
		if !ok {
			return nil, refusePod(a, "pod rejected: RuntimeClass %q not found", *name)
		}
		return rc, nil
	}
	return registry.Admission{
		Name: "RuntimeClass",
		Mutate: func(_ context.Context, a *registry.Attributes) error {
			if !creates(a, pods) {
				return nil
			}
			pod := a.Object.(*corev1.Pod)
			rc, err := find(a, pod)
			if err != nil || rc == nil {
				return err
			}
			if rc.Overhead != nil {
				if len(pod.Spec.Overhead) > 0 && !equality.Semantic.DeepEqual(pod.Spec.Overhead, rc.Overhead.PodFixed) {
					return refusePod(a, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
				}
				pod.Spec.Overhead = rc.Overhead.PodFixed.DeepCopy()
			}
			return place(a, pod, rc.Scheduling)
		},
		Validate: func(_ context.Context, a *registry.Attributes) error {
			if !creates(a, pods) {
				return nil
			}
			pod := a.Object.(*corev1.Pod)
			rc, err := find(a, pod)
			switch {
			case err != nil:
				return err
			case len(pod.Spec.Overhead) == 0:
				return nil
			case rc == nil || rc.Overhead == nil:
				return refusePod(a, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
			case !equality.Semantic.DeepEqual(pod.Spec.Overhead, rc.Overhead.PodFixed):
				return refusePod(a, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
			}
			return nil
		},
	}
}

// place adds where the class's nodes are to the pod's own choice of nodes.
func place(a *registry.Attributes, pod *corev1.Pod, s *nodev1.Scheduling) error {
	if s == nil {
		return nil
	}
	for k, v := range s.NodeSelector {
		if own, ok := pod.Spec.NodeSelector[k]; ok && own != v {
			return refusePod(a, "conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, v, k, own)
		}
		if pod.Spec.NodeSelector == nil {
			pod.Spec.NodeSelector = map[string]string{}
		}
		pod.Spec.NodeSelector[k] = v
	}
	for _, t := range s.Tolerations {
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(own corev1.Toleration) bool { return equality.Semantic.DeepEqual(own, t) }) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
		}
	}
	return nil
}

func refusePod(a *registry.Attributes, format string, args ...any) error {
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf(format, args...))
}
