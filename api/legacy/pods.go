package legacy

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
)

// Annotations that stood for fields before these existed.
const (
	initContainers      = "pod.beta.kubernetes.io/init-containers"
	initContainersOlder = "pod.alpha.kubernetes.io/init-containers"
	affinity            = "scheduler.alpha.kubernetes.io/affinity"
	tolerations         = "scheduler.alpha.kubernetes.io/tolerations"
	hostname            = "pod.beta.kubernetes.io/hostname"
	subdomain           = "pod.beta.kubernetes.io/subdomain"
)

// oldPod sets the fields of a template from the annotations that named them once.
// A field that is set wins. What cannot be read is left as the annotation that it
// is, as a server of today would: it decides nothing.
//
// pod.alpha.kubernetes.io/initialized needs nothing: it let a pet set go on after
// its first pet, which stateful sets do by themselves. A claim's
// volume.alpha.kubernetes.io/storage-class asked for whatever class there is,
// which is what a claim without a class gets.
func oldPod(t *corev1.PodTemplateSpec) {
	for _, key := range []string{initContainers, initContainersOlder} {
		if len(t.Spec.InitContainers) == 0 {
			fill(t, key, &t.Spec.InitContainers)
		}
	}
	if t.Spec.Affinity == nil {
		fill(t, affinity, &t.Spec.Affinity)
	}
	if len(t.Spec.Tolerations) == 0 {
		fill(t, tolerations, &t.Spec.Tolerations)
	}
	for key, p := range map[string]*string{hostname: &t.Spec.Hostname, subdomain: &t.Spec.Subdomain} {
		if v := t.Annotations[key]; v != "" && *p == "" {
			*p = v
		}
	}
}

func fill[T any](t *corev1.PodTemplateSpec, key string, field *T) {
	text, ok := t.Annotations[key]
	if !ok {
		return
	}
	var v T
	if json.Unmarshal([]byte(text), &v) == nil {
		*field = v
	}
}
