package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"
)

// Rank orders pods by who has to go first when the node is short of what the signal
// tells: who uses more than he asked for, then who matters less, then who uses most
// beyond his request. used are the pods' statistics by UID; a pod without any uses
// nothing.
func Rank(s Signal, pods []*corev1.Pod, used map[string]*stats.PodStats) []*corev1.Pod {
	out := slices.Clone(pods)
	beyond := func(p *corev1.Pod) int64 { return use(s, used[string(p.UID)]) - request(s, p) }
	exceeds := func(p *corev1.Pod) int {
		// Nobody can ask for inodes or process numbers.
		if name := s.Resource(); (name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage) && beyond(p) > 0 {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(out, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(exceeds(a), exceeds(b)), cmp.Compare(ptr.Deref(a.Spec.Priority, 0), ptr.Deref(b.Spec.Priority, 0)),
			cmp.Compare(beyond(b), beyond(a)))
	})
	return out
}

func request(s Signal, p *corev1.Pod) int64 {
	switch name := s.Resource(); name {
	case corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		q := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})[name]
		return q.Value()
	}
	return 0
}

// use is what a pod uses of what a signal tells.
func use(s Signal, p *stats.PodStats) int64 {
	if p == nil {
		return 0
	}
	switch s {
	case MemoryAvailable:
		if p.Memory != nil {
			return int64(ptr.Deref(p.Memory.WorkingSetBytes, 0))
		}
	case NodeFsAvailable, ImageFsAvailable:
		if p.EphemeralStorage != nil {
			return int64(ptr.Deref(p.EphemeralStorage.UsedBytes, 0))
		}
	case NodeFsInodesFree, ImageFsInodesFree:
		if p.EphemeralStorage != nil {
			return int64(ptr.Deref(p.EphemeralStorage.InodesUsed, 0))
		}
	case PIDAvailable:
		if p.ProcessStats != nil {
			return int64(ptr.Deref(p.ProcessStats.ProcessCount, 0))
		}
	}
	return 0
}

// Message tells a pod why it goes, as kubelets do.
func Message(s *Short, p *corev1.Pod, used *stats.PodStats) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", s.Signal.Resource(), s.Threshold.String(), s.Available.String())
	if used == nil {
		return b.String()
	}
	name := s.Signal.Resource()
	for i := range used.Containers {
		c := &used.Containers[i]
		var n *uint64
		switch {
		case name == corev1.ResourceMemory && c.Memory != nil:
			n = c.Memory.WorkingSetBytes
		case name == corev1.ResourceEphemeralStorage:
			n = sum(c.Rootfs, c.Logs)
		}
		if n == nil {
			continue
		}
		want := asked(p, c.Name, name)
		if have := resource.NewQuantity(int64(*n), resource.BinarySI); have.Cmp(want) > 0 {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", c.Name, have, want.String(), name)
		}
	}
	return b.String()
}

func sum(list ...*stats.FsStats) *uint64 {
	n := uint64(0)
	for _, f := range list {
		if f != nil {
			n += ptr.Deref(f.UsedBytes, 0)
		}
	}
	return &n
}

func asked(p *corev1.Pod, container string, name corev1.ResourceName) resource.Quantity {
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == container {
				return list[i].Resources.Requests[name]
			}
		}
	}
	return resource.Quantity{}
}

// Overdrawn says which limit of local storage a pod exceeds; "" for none.
func Overdrawn(p *corev1.Pod, used *stats.PodStats) string {
	if used == nil {
		return ""
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		for j := range used.VolumeStats {
			if u := &used.VolumeStats[j]; u.Name == v.Name && int64(ptr.Deref(u.UsedBytes, 0)) > v.EmptyDir.SizeLimit.Value() {
				return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
			}
		}
	}
	if limit, ok := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]; ok && use(NodeFsAvailable, used) > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for i := range used.Containers {
		c := &used.Containers[i]
		for j := range p.Spec.Containers {
			limit, ok := p.Spec.Containers[j].Resources.Limits[corev1.ResourceEphemeralStorage]
			if ok && p.Spec.Containers[j].Name == c.Name && int64(*sum(c.Rootfs, c.Logs)) > limit.Value() {
				return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
			}
		}
	}
	return ""
}

// Limited tells whether a pod has a limit of local storage, so that it is to be
// measured.
func Limited(p *corev1.Pod) bool {
	for i := range p.Spec.Volumes {
		if e := p.Spec.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && e.Medium != corev1.StorageMediumMemory {
			return true
		}
	}
	_, ok := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]
	return ok
}
