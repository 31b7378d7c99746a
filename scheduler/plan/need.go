package plan

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podresources "k8s.io/component-helpers/resource"
)

// amounts are resources: CPU in thousandths, the rest in units or bytes.
type amounts struct {
	cpu, memory, disk, pods int64
	other                   map[corev1.ResourceName]int64
}

func amountsOf(l corev1.ResourceList) (a amounts) {
	for name, q := range l {
		switch name {
		case corev1.ResourceCPU:
			a.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			a.memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			a.disk = q.Value()
		case corev1.ResourcePods:
			a.pods = q.Value()
		default:
			if a.other == nil {
				a.other = map[corev1.ResourceName]int64{}
			}
			a.other[name] = q.Value()
		}
	}
	return a
}

func (a *amounts) add(b *amounts, sign int64) {
	a.cpu += sign * b.cpu
	a.memory += sign * b.memory
	a.disk += sign * b.disk
	a.pods += sign * b.pods
	for name, v := range b.other {
		if a.other == nil {
			a.other = map[corev1.ResourceName]int64{}
		}
		a.other[name] += sign * v
	}
}

// port is a host port that a pod binds.
type port struct {
	ip       string
	protocol corev1.Protocol
	number   int32
}

const anyIP = "0.0.0.0"

// need is what a pod takes of a node.
type need struct {
	real, scored amounts
	ports        []port
	owner        types.UID
}

// What a container without requests is taken for when nodes are compared.
var (
	assumedCPU    = *resource.NewMilliQuantity(100, resource.DecimalSI)
	assumedMemory = *resource.NewQuantity(200<<20, resource.BinarySI)
)

func needOf(pod *corev1.Pod) *need {
	n := &need{real: amountsOf(podresources.PodRequests(pod, podresources.PodResourcesOptions{UseStatusResources: true}))}
	n.real.pods = 1
	n.scored = amountsOf(podresources.PodRequests(pod, podresources.PodResourcesOptions{UseStatusResources: true,
		NonMissingContainerRequests: corev1.ResourceList{corev1.ResourceCPU: assumedCPU, corev1.ResourceMemory: assumedMemory}}))
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
		n.owner = ref.UID
	}
	take := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				q := port{p.HostIP, p.Protocol, p.HostPort}
				if q.ip == "" {
					q.ip = anyIP
				}
				if q.protocol == "" {
					q.protocol = corev1.ProtocolTCP
				}
				n.ports = append(n.ports, q)
			}
		}
	}
	for i := range pod.Spec.Containers {
		take(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			take(c)
		}
	}
	return n
}

// clash tells whether a host port is taken; the unspecified address meets all.
func (n *node) clash(ports []port) bool {
	if len(n.ports) == 0 {
		return false
	}
	for _, want := range ports {
		for have := range n.ports {
			if have.number == want.number && have.protocol == want.protocol && (have.ip == want.ip || have.ip == anyIP || want.ip == anyIP) {
				return true
			}
		}
	}
	return false
}

// short lists the resources of which the node has too little left.
func (n *node) short(w *need) []string {
	var out []string
	if n.used.pods+1 > n.allocatable.pods {
		out = append(out, "Too many pods")
	}
	for _, r := range []struct {
		name             corev1.ResourceName
		want, used, have int64
	}{
		{corev1.ResourceCPU, w.real.cpu, n.used.cpu, n.allocatable.cpu},
		{corev1.ResourceMemory, w.real.memory, n.used.memory, n.allocatable.memory},
		{corev1.ResourceEphemeralStorage, w.real.disk, n.used.disk, n.allocatable.disk},
	} {
		if r.want > 0 && r.want > r.have-r.used {
			out = append(out, "Insufficient "+string(r.name))
		}
	}
	for name, want := range w.real.other {
		if want > 0 && want > n.allocatable.other[name]-n.used.other[name] {
			out = append(out, "Insufficient "+string(name))
		}
	}
	return out
}

// fits is short without the words, for the hot path.
func (n *node) fits(w *need) bool {
	a, u, r := &n.allocatable, &n.used, &w.real
	if u.pods+1 > a.pods || (r.cpu > 0 && r.cpu > a.cpu-u.cpu) || (r.memory > 0 && r.memory > a.memory-u.memory) || (r.disk > 0 && r.disk > a.disk-u.disk) {
		return false
	}
	for name, want := range r.other {
		if want > 0 && want > a.other[name]-u.other[name] {
			return false
		}
	}
	return true
}
