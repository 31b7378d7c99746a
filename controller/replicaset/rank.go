package replicaset

import (
	"cmp"
	"math/bits"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/controller/engine"
)

// victims returns the n pods to delete first. related are the pods of all
// replica sets with the same owner: of equal pods, one on a node with more of
// them goes first.
func victims(pods, related []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	onNode := map[string]int{}
	for _, p := range related {
		if engine.Active(p) {
			onNode[p.Spec.NodeName]++
		}
	}
	pods = slices.Clone(pods)
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int {
		return before(a, b, onNode[a.Spec.NodeName], onNode[b.Spec.NodeName], now)
	})
	return pods[:n]
}

// before is negative if a is deleted before b. The order of the criteria is
// Kubernetes' (ActivePodsWithRanks).
func before(a, b *corev1.Pod, rankA, rankB int, now time.Time) int {
	return cmp.Or(
		falseFirst(a.Spec.NodeName != "", b.Spec.NodeName != ""),
		cmp.Compare(phaseRank(a), phaseRank(b)),
		falseFirst(engine.Ready(a), engine.Ready(b)),
		cmp.Compare(deletionCost(a), deletionCost(b)),
		cmp.Compare(rankB, rankA),
		readyAge(a, b, now),
		cmp.Compare(restarts(b, true), restarts(a, true)),
		cmp.Compare(restarts(b, false), restarts(a, false)),
		youngerFirst(a.CreationTimestamp, b.CreationTimestamp, now),
	)
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func phaseRank(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodRunning:
		return 2
	case corev1.PodUnknown:
		return 1
	}
	return 0
}

func deletionCost(p *corev1.Pod) int {
	n, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return int(n)
}

func readyAge(a, b *corev1.Pod, now time.Time) int {
	if !engine.Ready(a) || !engine.Ready(b) {
		return 0
	}
	return youngerFirst(engine.Condition(a, corev1.PodReady).LastTransitionTime, engine.Condition(b, corev1.PodReady).LastTransitionTime, now)
}

// youngerFirst compares ages on a logarithmic scale: pods of about the same age
// are equal, so that not always the same failure domain loses its pods.
func youngerFirst(a, b metav1.Time, now time.Time) int {
	if a.Equal(&b) {
		return 0
	}
	if a.IsZero() {
		return -1
	}
	if b.IsZero() {
		return 1
	}
	return cmp.Compare(logAge(a, now), logAge(b, now))
}

func logAge(t metav1.Time, now time.Time) int {
	return bits.Len64(uint64(max(0, now.Sub(t.Time))))
}

// restarts is the highest restart count of a pod's containers, or of its
// restartable init containers.
func restarts(p *corev1.Pod, regular bool) int32 {
	var most int32
	if regular {
		for _, s := range p.Status.ContainerStatuses {
			most = max(most, s.RestartCount)
		}
		return most
	}
	sidecar := map[string]bool{}
	for _, c := range p.Spec.InitContainers {
		sidecar[c.Name] = c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	for _, s := range p.Status.InitContainerStatuses {
		if sidecar[s.Name] {
			most = max(most, s.RestartCount)
		}
	}
	return most
}
