package fieldref

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestResource(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	node := list("8", "16Gi")
	for _, tc := range []struct {
		field, divisor string
		container, pod corev1.ResourceList // limits
		want           string
	}{
		{"limits.cpu", "", list("1500m", ""), nil, "2"},
		{"limits.cpu", "1m", list("1500m", ""), nil, "1500"},
		{"limits.memory", "1Mi", list("", "64Mi"), list("", "128Mi"), "64"},
		{"limits.memory", "1Mi", nil, list("", "128Mi"), "128"},
		{"limits.cpu", "", nil, list("", "128Mi"), "8"},
		{"limits.memory", "1Gi", nil, nil, "16"},
		{"requests.cpu", "1m", list("1", ""), list("2", ""), "0"},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Limits: tc.container}}}}}
		if tc.pod != nil {
			pod.Spec.Resources = &corev1.ResourceRequirements{Limits: tc.pod}
		}
		sel := &corev1.ResourceFieldSelector{Resource: tc.field}
		if tc.divisor != "" {
			sel.Divisor = resource.MustParse(tc.divisor)
		}
		if got, err := Resource(pod, sel, "c", node); err != nil || got != tc.want {
			t.Errorf("%s in %q of %v in %v: %s, %v; want %s", tc.field, tc.divisor, tc.container, tc.pod, got, err, tc.want)
		}
	}
	for _, bad := range []string{"limits", "others.cpu"} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
		if _, err := Resource(pod, &corev1.ResourceFieldSelector{Resource: bad}, "c", node); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
