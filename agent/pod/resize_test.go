package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

// sized is a pod of one container with the given request and limit of CPU and
// limit of memory; "" leaves one out.
func sized(request, limit, memory string) *corev1.Pod {
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	for l, v := range map[*corev1.ResourceList]string{&r.Requests: request, &r.Limits: limit} {
		if v != "" {
			(*l)[corev1.ResourceCPU] = resource.MustParse(v)
		}
	}
	if memory != "" {
		r.Limits[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: r}}}}
}

func TestResizes(t *testing.T) {
	const memory = 8 << 30
	for _, c := range []struct {
		name            string
		from, to        *corev1.Pod
		policy          corev1.ResourceName // restarts for it
		change          bool
		shrink, restart bool
		quota, bytes    int64
	}{
		{"nothing changes", sized("1", "1", "1Gi"), sized("1", "1", "1Gi"), "", false, false, false, 0, 0},
		{"more CPU", sized("1", "1", "1Gi"), sized("2", "2", "1Gi"), "", true, false, false, 200000, 1 << 30},
		{"less of all", sized("2", "2", "2Gi"), sized("1", "1", "1Gi"), "", true, true, false, 100000, 1 << 30},
		{"less CPU, more memory", sized("2", "2", "1Gi"), sized("1", "1", "2Gi"), "", true, false, false, 100000, 2 << 30},
		{"no limit any more", sized("1", "1", "1Gi"), sized("1", "", "1Gi"), "", true, false, false, -1, 1 << 30},
		{"a limit at last", sized("1", "", "1Gi"), sized("1", "1", "1Gi"), "", true, true, false, 100000, 1 << 30},
		{"memory restarts", sized("1", "1", "1Gi"), sized("1", "1", "2Gi"), corev1.ResourceMemory, true, false, true, 100000, 2 << 30},
		{"CPU changes where memory restarts", sized("1", "1", "1Gi"), sized("2", "2", "1Gi"), corev1.ResourceMemory, true, false, false, 200000, 1 << 30},
	} {
		t.Run(c.name, func(t *testing.T) {
			has := podspec.LinuxResources(c.from, &c.from.Spec.Containers[0], memory)
			v := (*view.Pod)(nil).With(&view.Container{ContainerStatus: &runtimeapi.ContainerStatus{Id: "1", Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
				State: runtimeapi.ContainerState_CONTAINER_RUNNING, Resources: &runtimeapi.ContainerResources{Linux: has}}})
			if c.policy != "" {
				c.to.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: c.policy, RestartPolicy: corev1.RestartContainer}}
			}
			got := resizes(c.to, v, memory, func(string) bool { return false })
			if (len(got) == 1) != c.change {
				t.Fatalf("%d changes", len(got))
			}
			if !c.change {
				return
			}
			r := got[0]
			if r.shrink != c.shrink || r.restart != c.restart || r.want.CpuQuota != c.quota || r.want.MemoryLimitInBytes != c.bytes {
				t.Errorf("shrink %v restart %v quota %d memory %d", r.shrink, r.restart, r.want.CpuQuota, r.want.MemoryLimitInBytes)
			}
			has.CpuQuota, has.MemoryLimitInBytes, has.CpuShares = r.want.CpuQuota, r.want.MemoryLimitInBytes, r.want.CpuShares
			if left := resizes(c.to, v, memory, func(string) bool { return false }); len(left) > 0 {
				t.Errorf("changed, and to be changed again: %+v", left)
			}
		})
	}
}
