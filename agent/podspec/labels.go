// Package podspec translates pods of the API into messages of the container
// runtime interface. Everything here is a pure function of its arguments.
package podspec

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// Labels and annotations by which sandboxes and containers of pods are found
// again in the runtime. They are those that every kubelet writes, so tools such
// as crictl show pod names.
const (
	LabelPodName      = "io.kubernetes.pod.name"
	LabelPodNamespace = "io.kubernetes.pod.namespace"
	LabelPodUID       = "io.kubernetes.pod.uid"
	LabelContainer    = "io.kubernetes.container.name"

	AnnotationRestartCount      = "io.kubernetes.container.restartCount"
	AnnotationHash              = "io.kubernetes.container.hash"
	AnnotationMessagePath       = "io.kubernetes.container.terminationMessagePath"
	AnnotationMessagePolicy     = "io.kubernetes.container.terminationMessagePolicy"
	AnnotationPodGracePeriod    = "io.kubernetes.pod.terminationGracePeriod"
	AnnotationPodDeletionPeriod = "io.kubernetes.pod.deletionGracePeriod"
)

// SandboxLabels are the labels of a pod's sandbox: the pod's own and those that
// identify it.
func SandboxLabels(pod *corev1.Pod) map[string]string {
	l := make(map[string]string, len(pod.Labels)+3)
	for k, v := range pod.Labels {
		l[k] = v
	}
	l[LabelPodName] = pod.Name
	l[LabelPodNamespace] = pod.Namespace
	l[LabelPodUID] = string(pod.UID)
	return l
}

// ContainerLabels identify a container.
func ContainerLabels(pod *corev1.Pod, name string) map[string]string {
	return map[string]string{
		LabelPodName: pod.Name, LabelPodNamespace: pod.Namespace, LabelPodUID: string(pod.UID), LabelContainer: name,
	}
}

// ContainerAnnotations carry what must be known of a container after a restart
// of the agent.
func ContainerAnnotations(pod *corev1.Pod, c *corev1.Container, restarts int) map[string]string {
	a := map[string]string{
		AnnotationRestartCount:  strconv.Itoa(restarts),
		AnnotationHash:          Hash(c),
		AnnotationMessagePath:   c.TerminationMessagePath,
		AnnotationMessagePolicy: string(c.TerminationMessagePolicy),
	}
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		a[AnnotationPodGracePeriod] = strconv.FormatInt(*g, 10)
	}
	return a
}

// RestartCount reads the count back from a container's annotations.
func RestartCount(annotations map[string]string) int {
	n, _ := strconv.Atoi(annotations[AnnotationRestartCount])
	return n
}

// Hash changes when a container must be replaced because its definition changed:
// of a running pod's containers only the image may change so.
func Hash(c *corev1.Container) string {
	b, _ := json.Marshal(struct{ Name, Image string }{c.Name, c.Image})
	h := fnv.New32a()
	h.Write(b)
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

// LogDir is the directory of a pod's container logs beneath root.
func LogDir(root, namespace, name, uid string) string {
	return filepath.Join(root, namespace+"_"+name+"_"+uid)
}

// LogPath is a container's log file relative to its pod's log directory.
func LogPath(container string, restarts int) string {
	return filepath.Join(container, strconv.Itoa(restarts)+".log")
}

// FullName names a pod in messages as Kubernetes does: name_namespace(uid).
func FullName(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

// IsSidecar tells whether an init container is restartable, that is a sidecar.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Containers visits init, regular and ephemeral containers in this order; init
// tells the first kind. Ephemeral containers are visited as regular ones.
func Containers(pod *corev1.Pod, visit func(c *corev1.Container, init bool)) {
	for i := range pod.Spec.InitContainers {
		visit(&pod.Spec.InitContainers[i], true)
	}
	for i := range pod.Spec.Containers {
		visit(&pod.Spec.Containers[i], false)
	}
	for i := range pod.Spec.EphemeralContainers {
		visit((*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon), false)
	}
}

// Find returns the container of that name, or nil.
func Find(pod *corev1.Pod, name string) *corev1.Container {
	var found *corev1.Container
	Containers(pod, func(c *corev1.Container, _ bool) {
		if c.Name == name {
			found = c
		}
	})
	return found
}

// ContainerKind names a container's kind as metrics do: container, init_container or
// ephemeral_container.
func ContainerKind(pod *corev1.Pod, name string) string {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return "init_container"
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return "ephemeral_container"
		}
	}
	return "container"
}
