package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

var (
	serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	priorityClasses = schema.GroupVersionResource{Group: "scheduling.k8s.io", Version: "v1", Resource: "priorityclasses"}
)

const (
	tokenMount = "/var/run/secrets/kubernetes.io/serviceaccount"
	// life of the mounted token in seconds; odd by a little, as in Kubernetes, so
	// that a token made for this purpose can be told from one asked for by hand
	mountedTokenSeconds = 3607
)

// serviceAccount gives a pod its service account, image pull secrets and token.
func serviceAccount(d Deps) registry.Admission {
	return registry.Admission{Name: "ServiceAccount", Mutate: func(_ context.Context, a *registry.Attributes) error {
		if !isPod(a) || a.Operation != registry.Create {
			return nil
		}
		pod := a.Object.(*corev1.Pod)
		if pod.Annotations[corev1.MirrorPodAnnotationKey] != "" {
			return nil
		}
		if pod.Spec.ServiceAccountName == "" {
			pod.Spec.ServiceAccountName = "default"
		}
		pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
		obj := d.Lookup(serviceAccounts, a.Namespace, pod.Spec.ServiceAccountName)
		if obj == nil {
			return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name,
				fmt.Errorf("error looking up service account %s/%s: serviceaccount %q not found", a.Namespace, pod.Spec.ServiceAccountName, pod.Spec.ServiceAccountName))
		}
		sa := obj.(*corev1.ServiceAccount)
		if len(pod.Spec.ImagePullSecrets) == 0 {
			pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, sa.ImagePullSecrets...)
		}
		if wantsToken(pod, sa) {
			mountToken(pod)
		}
		return nil
	}}
}

func wantsToken(pod *corev1.Pod, sa *corev1.ServiceAccount) bool {
	if v := pod.Spec.AutomountServiceAccountToken; v != nil {
		return *v
	}
	return sa.AutomountServiceAccountToken == nil || *sa.AutomountServiceAccountToken
}

func mountToken(pod *corev1.Pod) {
	name := "kube-api-access-" + utilrand.String(5)
	used := false
	mount := corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenMount}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if !mounts(&list[i], tokenMount) {
				list[i].VolumeMounts = append(list[i].VolumeMounts, mount)
				used = true
			}
		}
	}
	if used {
		pod.Spec.Volumes = append(pod.Spec.Volumes, tokenVolume(name))
	}
}

func mounts(c *corev1.Container, path string) bool {
	for _, m := range c.VolumeMounts {
		if m.MountPath == path {
			return true
		}
	}
	return false
}

func tokenVolume(name string) corev1.Volume {
	seconds, mode := int64(mountedTokenSeconds), int32(0o644)
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: &mode, Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
	}}}}
}

// priority resolves a pod's priority class.
func priority(d Deps) registry.Admission {
	return registry.Admission{Name: "Priority", Mutate: func(_ context.Context, a *registry.Attributes) error {
		if !isPod(a) || a.Operation != registry.Create {
			return nil
		}
		pod := a.Object.(*corev1.Pod)
		value, policy := int32(0), corev1.PreemptLowerPriority
		name := pod.Spec.PriorityClassName
		var class *schedulingv1.PriorityClass
		if name != "" {
			obj := d.Lookup(priorityClasses, "", name)
			if obj == nil {
				return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf("no PriorityClass with name %s was found", name))
			}
			class = obj.(*schedulingv1.PriorityClass)
		} else {
			d.Each(priorityClasses, "", func(o kind.Object) bool {
				pc := o.(*schedulingv1.PriorityClass)
				if pc.GlobalDefault && (class == nil || pc.Value < class.Value) {
					class = pc
				}
				return true
			})
		}
		if class != nil {
			pod.Spec.PriorityClassName = class.Name
			value = class.Value
			if class.PreemptionPolicy != nil {
				policy = *class.PreemptionPolicy
			}
		}
		if pod.Spec.Priority != nil && *pod.Spec.Priority != value {
			return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name,
				fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, value))
		}
		pod.Spec.Priority = &value
		if pod.Spec.PreemptionPolicy == nil {
			pod.Spec.PreemptionPolicy = &policy
		}
		return nil
	}}
}

// defaultTolerationSeconds is how long a pod stays on a node that is lost.
const defaultTolerationSeconds = 300

// tolerations lets pods stay for a while on nodes that are not ready or cannot
// be reached.
func tolerations() registry.Admission {
	return registry.Admission{Name: "DefaultTolerationSeconds", Mutate: func(_ context.Context, a *registry.Attributes) error {
		if !isPod(a) || a.Operation != registry.Create && a.Operation != registry.Update {
			return nil
		}
		pod := a.Object.(*corev1.Pod)
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			if tolerates(pod, key) {
				continue
			}
			seconds := int64(defaultTolerationSeconds)
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds})
		}
		return nil
	}}
}

func tolerates(pod *corev1.Pod, key string) bool {
	for _, t := range pod.Spec.Tolerations {
		if (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}
