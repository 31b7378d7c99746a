package podspec

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

func TestSwap(t *testing.T) {
	const gi = 1 << 30
	list := func(v string) corev1.ResourceList {
		if v == "" {
			return nil
		}
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(v)}
	}
	for _, tc := range []struct {
		name           string
		behavior       string
		request, limit string
		cpu            bool // guaranteed needs both
		priority       int32
		want           int64
		v1             int64
	}{
		{"no swap", NoSwap, "2Gi", "4Gi", false, 0, 0, 4 * gi},
		{"by default none", "", "2Gi", "4Gi", false, 0, 0, 4 * gi},
		{"a quarter of memory, a quarter of swap", LimitedSwap, "2Gi", "4Gi", false, 0, gi, 5 * gi},
		{"without a limit", LimitedSwap, "2Gi", "", false, 0, gi, 0},
		{"nothing is asked for", LimitedSwap, "", "", false, 0, 0, 0},
		{"request and limit are the same", LimitedSwap, "2Gi", "2Gi", false, 0, 0, 2 * gi},
		{"guaranteed", LimitedSwap, "2Gi", "2Gi", true, 0, 0, 2 * gi},
		{"critical", LimitedSwap, "2Gi", "4Gi", false, 2000000000, 0, 4 * gi},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Priority: ptr.To(tc.priority), Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list(tc.request), Limits: list(tc.limit)}}}}}
		c := &pod.Spec.Containers[0]
		if tc.cpu {
			c.Resources.Requests[corev1.ResourceCPU], c.Resources.Limits[corev1.ResourceCPU] = resource.MustParse("1"), resource.MustParse("1")
		}
		s := Swap{Behavior: tc.behavior, Total: 4 * gi, Unified: true}
		if got := s.Limit(pod, c, 8*gi); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
		r := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: c.Resources.Limits.Memory().Value()}
		if s.Apply(r, pod, c, 8*gi); r.Unified["memory.swap.max"] != resource.NewQuantity(tc.want, resource.DecimalSI).AsDec().String() || r.MemorySwapLimitInBytes != 0 {
			t.Errorf("%s: unified %v", tc.name, r.Unified)
		}
		r = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: c.Resources.Limits.Memory().Value()}
		s.Unified = false
		if s.Apply(r, pod, c, 8*gi); r.MemorySwapLimitInBytes != tc.v1 || r.Unified != nil {
			t.Errorf("%s: memory and swap %d, want %d", tc.name, r.MemorySwapLimitInBytes, tc.v1)
		}
		r = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: gi}
		if (Swap{Behavior: tc.behavior}).Apply(r, pod, c, 8*gi); r.MemorySwapLimitInBytes != 0 || r.Unified != nil {
			t.Errorf("%s, without swap: %v", tc.name, r)
		}
	}
}

func TestOtherPagesAreNotUsed(t *testing.T) {
	r := &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}}
	LimitPages(r, []corev1.ResourceName{"hugepages-2Mi", "hugepages-1Gi"})
	if len(r.HugepageLimits) != 2 || r.HugepageLimits[0].Limit != 4<<20 || r.HugepageLimits[1].PageSize != "1GB" || r.HugepageLimits[1].Limit != 0 {
		t.Errorf("%v", r.HugepageLimits)
	}
}
