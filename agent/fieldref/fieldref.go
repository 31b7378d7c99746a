// Package fieldref reads the fields of pods and containers that environment
// variables and downward API volumes may refer to. It is pure.
package fieldref

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"knarr.dev/knarr/agent/podspec"
)

// Field returns the text of a pod's field. Status fields are taken from the
// pod's status.
func Field(pod *corev1.Pod, path string) (string, error) {
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.annotations":
			return pod.Annotations[key], nil
		case "metadata.labels":
			return pod.Labels[key], nil
		}
		return "", fmt.Errorf("fieldPath %q does not support subscript", path)
	}
	switch path {
	case "metadata.annotations":
		return format(pod.Annotations), nil
	case "metadata.labels":
		return format(pod.Labels), nil
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

// subscript splits metadata.labels['key'].
func subscript(path string) (base, key string, ok bool) {
	base, rest, ok := strings.Cut(path, "['")
	if !ok || !strings.HasSuffix(rest, "']") {
		return "", "", false
	}
	return base, strings.TrimSuffix(rest, "']"), true
}

// format writes a map as sorted lines key="value".
func format(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	for i, k := range keys {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(k + "=" + strconv.Quote(m[k]))
	}
	return b.String()
}

// Resource returns a request or limit of a container in units of the divisor,
// rounded up. A limit that is not set is the pod's own, and without that the node's
// allocatable. container is used where the selector names none.
func Resource(pod *corev1.Pod, sel *corev1.ResourceFieldSelector, container string, allocatable corev1.ResourceList) (string, error) {
	name := sel.ContainerName
	if name == "" {
		name = container
	}
	c := podspec.Find(pod, name)
	if c == nil {
		return "", fmt.Errorf("container %s not found", name)
	}
	kind, resourceName, ok := strings.Cut(sel.Resource, ".")
	if !ok {
		return "", fmt.Errorf("unsupported container resource : %v", sel.Resource)
	}
	rn := corev1.ResourceName(resourceName)
	var q resource.Quantity
	switch kind {
	case "limits":
		q = c.Resources.Limits[rn]
		if pod.Spec.Resources != nil && q.IsZero() {
			q = pod.Spec.Resources.Limits[rn]
		}
		if q.IsZero() {
			q = allocatable[rn]
		}
	case "requests":
		q = c.Resources.Requests[rn]
	default:
		return "", fmt.Errorf("unsupported container resource : %v", sel.Resource)
	}
	div := sel.Divisor
	if div.IsZero() {
		div = resource.MustParse("1")
	}
	if rn == corev1.ResourceCPU {
		return strconv.FormatInt(ceil(q.MilliValue(), div.MilliValue()), 10), nil
	}
	return strconv.FormatInt(ceil(q.Value(), div.Value()), 10), nil
}

func ceil(a, b int64) int64 {
	if b == 0 {
		return 0
	}
	return (a + b - 1) / b
}
