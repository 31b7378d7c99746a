package podspec

import (
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of the kernel's CPU controller.
const (
	minShares = 2
	maxShares = 262144
	period    = 100000 // µs
	minQuota  = 1000   // µs
)

// QOS returns the quality of service class of a pod: what the API server has said,
// which stays, or else what it would.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	if c := pod.Status.QOSClass; c != "" {
		return c
	}
	if pod.Spec.Resources != nil {
		return classify(pod.Spec.Resources.Requests, pod.Spec.Resources.Limits, true)
	}
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	guaranteed := true
	add := func(c *corev1.Container) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := c.Resources.Requests[name]; ok && !q.IsZero() {
				sum := requests[name]
				sum.Add(q)
				requests[name] = sum
			}
			if q, ok := c.Resources.Limits[name]; ok && !q.IsZero() {
				sum := limits[name]
				sum.Add(q)
				limits[name] = sum
			} else {
				guaranteed = false
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		add(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return classify(requests, limits, guaranteed)
}

func classify(requests, limits corev1.ResourceList, guaranteed bool) corev1.PodQOSClass {
	cpu, memory := corev1.ResourceCPU, corev1.ResourceMemory
	set := func(l corev1.ResourceList, n corev1.ResourceName) bool { q, ok := l[n]; return ok && !q.IsZero() }
	if !set(requests, cpu) && !set(requests, memory) && !set(limits, cpu) && !set(limits, memory) {
		return corev1.PodQOSBestEffort
	}
	if guaranteed {
		for _, n := range []corev1.ResourceName{cpu, memory} {
			r, l := requests[n], limits[n]
			if !set(limits, n) || set(requests, n) && r.Cmp(l) != 0 {
				return corev1.PodQOSBurstable
			}
		}
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// CgroupParent is the cgroup beneath which the runtime puts the pod's
// containers: the root itself holds guaranteed pods.
func CgroupParent(root string, pod *corev1.Pod) string {
	class := ""
	switch QOS(pod) {
	case corev1.PodQOSBurstable:
		class = "burstable"
	case corev1.PodQOSBestEffort:
		class = "besteffort"
	}
	return path.Join(root, class, "pod"+string(pod.UID))
}

// CgroupParents are where a pod's group may be, whatever its class.
func CgroupParents(root, uid string) []string {
	var out []string
	for _, class := range []string{"", "burstable", "besteffort"} {
		out = append(out, path.Join(root, class, "pod"+uid))
	}
	return out
}

// Shares converts CPU in thousandths to cgroup v1 shares.
func Shares(milli int64) int64 {
	return min(max(milli*1024/1000, minShares), maxShares)
}

// Quota converts a CPU limit in thousandths to microseconds per period of
// 100 ms; 0 stands for no limit.
func Quota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*period/1000, minQuota)
}

// OOMScoreAdj is the kernel's badness adjustment of a container: critical and
// guaranteed ones die last, best-effort ones first, the rest by the share of the
// node's memory (in bytes) that they asked for.
func OOMScoreAdj(pod *corev1.Pod, c *corev1.Container, nodeMemory int64) int64 {
	if p := pod.Spec.Priority; p != nil && *p >= systemCritical {
		return -997
	}
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	request := c.Resources.Requests.Memory().Value()
	if nodeMemory <= 0 {
		nodeMemory = 1
	}
	adj := 1000 - 1000*request/nodeMemory
	// Above guaranteed pods, and never as expendable as best-effort ones.
	if adj < 3 {
		return 3
	}
	if adj >= 1000 {
		return 999
	}
	return adj
}

// LinuxResources are the limits of one container.
func LinuxResources(pod *corev1.Pod, c *corev1.Container, nodeMemory int64) *runtimeapi.LinuxContainerResources {
	r := resourcesOf(c.Resources.Requests, c.Resources.Limits)
	r.OomScoreAdj = OOMScoreAdj(pod, c, nodeMemory)
	return r
}

// Overhead are the limits of what a pod takes beside its containers.
func Overhead(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	return resourcesOf(pod.Spec.Overhead, pod.Spec.Overhead)
}

// SameLimits compares the limits that can change while a container runs. None at
// all is written as 0 or below.
func SameLimits(a, b *runtimeapi.LinuxContainerResources) bool {
	same := func(x, y int64) bool { return max(x, 0) == max(y, 0) }
	return a.GetCpuShares() == b.GetCpuShares() && same(a.GetCpuQuota(), b.GetCpuQuota()) && same(a.GetMemoryLimitInBytes(), b.GetMemoryLimitInBytes())
}

// PodResources are the limits of a whole pod, with the sandbox's overhead.
func PodResources(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	opts := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
	requests, limits := resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts)
	podLevel := resourcehelper.IsPodLevelLimitsSet(pod)
	// A limit counts for the pod only when each container has one, init containers too.
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q := c.Resources.Limits[name]; !podLevel && q.IsZero() {
				delete(limits, name)
			}
		}
	}
	return resourcesOf(requests, limits)
}

// GroupResources are the limits of a pod's control group, as the sandbox's configuration
// has them: the pod's, and what it takes beside its containers.
func GroupResources(c *runtimeapi.LinuxPodSandboxConfig) *runtimeapi.LinuxContainerResources {
	out, more := proto.Clone(c.Resources).(*runtimeapi.LinuxContainerResources), c.Overhead
	if out.MemoryLimitInBytes > 0 {
		out.MemoryLimitInBytes += more.MemoryLimitInBytes
	}
	if out.CpuQuota > 0 {
		out.CpuQuota += more.CpuQuota
	}
	if more.CpuShares > minShares {
		out.CpuShares += more.CpuShares
	}
	return out
}

func resourcesOf(requests, limits corev1.ResourceList) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{
		CpuPeriod:          period,
		CpuQuota:           Quota(limits.Cpu().MilliValue()),
		MemoryLimitInBytes: limits.Memory().Value(),
	}
	// A limit without a request stands for both.
	cpu, asked := requests[corev1.ResourceCPU]
	if limit, ok := limits[corev1.ResourceCPU]; ok && !asked {
		cpu = limit
	}
	r.CpuShares = Shares(cpu.MilliValue())
	for name, q := range limits {
		if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
			r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: pageSize(size), Limit: uint64(q.Value())})
		}
	}
	return r
}

// pageSize writes 2Mi as the cgroup's 2MB.
func pageSize(s string) string {
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return s
	}
	v, unit := q.Value(), 0
	for v >= 1024 && v%1024 == 0 && unit < 3 {
		v /= 1024
		unit++
	}
	return resource.NewQuantity(v, resource.DecimalSI).String() + []string{"B", "KB", "MB", "GB"}[unit]
}

// EndTogether has the kernel end all processes of a container that is out of memory: one
// that lost some of them would limp on. It takes the second version of control groups.
func EndTogether(r *runtimeapi.LinuxContainerResources) {
	if r.Unified == nil {
		r.Unified = map[string]string{}
	}
	r.Unified["memory.oom.group"] = "1"
}

// LimitPages forbids the sizes of huge pages that a container does not ask for; sizes
// are the node's, as resources.
func LimitPages(r *runtimeapi.LinuxContainerResources, sizes []corev1.ResourceName) {
	for _, name := range sizes {
		size := pageSize(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
		if !slices.ContainsFunc(r.HugepageLimits, func(h *runtimeapi.HugepageLimit) bool { return h.PageSize == size }) {
			r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: size})
		}
	}
}
