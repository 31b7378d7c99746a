package podspec

import (
	"math"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What containers have of the node's swap:
// https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management.
const (
	NoSwap      = "NoSwap"      // nothing
	LimitedSwap = "LimitedSwap" // burstable ones a share like that of memory
)

// Swap is a node's swap.
type Swap struct {
	Behavior string // empty: NoSwap
	Total    int64  // bytes; 0: the node has none
	// Unified: memory is limited by the second version of control groups, where swap
	// has a limit of its own.
	Unified bool
}

// Limit is how much of the node's swap a container may use, in bytes. nodeMemory is in
// bytes.
func (s Swap) Limit(pod *corev1.Pod, c *corev1.Container, nodeMemory int64) int64 {
	if s.Behavior != LimitedSwap || s.Total == 0 || nodeMemory == 0 || Critical(pod) || QOS(pod) != corev1.PodQOSBurstable {
		return 0
	}
	request, limit := c.Resources.Requests.Memory(), c.Resources.Limits.Memory()
	if request.IsZero() || request.Cmp(*limit) == 0 {
		return 0
	}
	return int64(math.Floor(float64(request.Value()) / float64(nodeMemory) * float64(s.Total)))
}

// Apply adds a container's limit of swap to its others. A node without swap needs none,
// and in the first version of control groups only who has a limit of memory can have
// one of both together.
func (s Swap) Apply(r *runtimeapi.LinuxContainerResources, pod *corev1.Pod, c *corev1.Container, nodeMemory int64) {
	if s.Total == 0 {
		return
	}
	limit := s.Limit(pod, c, nodeMemory)
	switch {
	case s.Unified:
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		r.Unified["memory.swap.max"] = strconv.FormatInt(limit, 10)
	case r.MemoryLimitInBytes > 0:
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes + limit
	}
}
