package podspec

import corev1 "k8s.io/api/core/v1"

// Annotations of pods that a node runs from its own files, and of their mirrors in
// the API: https://kubernetes.io/docs/reference/labels-annotations-taints.
const (
	AnnotationConfigSource = "kubernetes.io/config.source"
	AnnotationConfigMirror = corev1.MirrorPodAnnotationKey
	AnnotationConfigHash   = "kubernetes.io/config.hash"
	AnnotationConfigSeen   = "kubernetes.io/config.seen"

	// SourceFile and SourceAPI say where a pod came from.
	SourceFile = "file"
	SourceAPI  = "api"
)

// IsStatic tells whether a pod came from one of the node's files.
func IsStatic(pod *corev1.Pod) bool {
	src := pod.Annotations[AnnotationConfigSource]
	return src != "" && src != SourceAPI && !IsMirror(pod)
}

// IsMirror tells whether a pod of the API shows a static pod.
func IsMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[AnnotationConfigMirror]
	return ok
}

// Critical tells whether a pod goes before others when the node runs short: a static
// one, or one of the system's priorities.
func Critical(pod *corev1.Pod) bool {
	return IsStatic(pod) || IsMirror(pod) || pod.Spec.Priority != nil && *pod.Spec.Priority >= systemCritical
}

// systemCritical is the lowest priority of the system's own classes.
const systemCritical = 2000000000
