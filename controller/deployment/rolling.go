package deployment

import (
	"cmp"
	"math"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// This file is arithmetic only.

// bounds resolves maxSurge and maxUnavailable to pods: a percentage of surge is
// rounded up, of unavailability down, and if both come to nothing one pod may be
// unavailable, or the rollout could not move.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType || d.Spec.Strategy.RollingUpdate == nil {
		return 0, 0
	}
	n := wanted(d)
	surge = resolve(d.Spec.Strategy.RollingUpdate.MaxSurge, n, true)
	unavailable = resolve(d.Spec.Strategy.RollingUpdate.MaxUnavailable, n, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, n)
}

func resolve(v *intstr.IntOrString, total int32, up bool) int32 {
	if v == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, int(total), up)
	if err != nil {
		return 0
	}
	return int32(n)
}

func wanted(d *appsv1.Deployment) int32 { return deref(d.Spec.Replicas) }

func deref(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func specSum(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += deref(rs.Spec.Replicas)
	}
	return n
}

// present counts the pods that exist or will: a set that was scaled down still
// has its pods until its status says otherwise, and they count against the surge.
func present(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += max(deref(rs.Spec.Replicas), rs.Status.Replicas)
	}
	return n
}

func availableSum(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += min(rs.Status.AvailableReplicas, deref(rs.Spec.Replicas)) // the status may lag behind a scale-down
	}
	return n
}

// freshReplicas is how many replicas the new set gets now.
func freshReplicas(d *appsv1.Deployment, all []*appsv1.ReplicaSet, fresh *appsv1.ReplicaSet) int32 {
	want, have := wanted(d), deref(fresh.Spec.Replicas)
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return want
	}
	if have >= want {
		return want
	}
	surge, _ := bounds(d)
	room := want + surge - present(all)
	if room <= 0 {
		return have
	}
	return have + min(room, want-have)
}

// oldReplicas is how many replicas each old set keeps now, in the order of old:
// first pods that are not available anyway go, then as many as may be missing.
func oldReplicas(d *appsv1.Deployment, old []*appsv1.ReplicaSet, fresh *appsv1.ReplicaSet) []int32 {
	out := make([]int32, len(old))
	for i, rs := range old {
		out[i] = deref(rs.Spec.Replicas)
	}
	var freshWanted, freshAvailable int32
	all := old
	if fresh != nil {
		freshWanted, freshAvailable = deref(fresh.Spec.Replicas), fresh.Status.AvailableReplicas
		all = append(slices.Clone(old), fresh)
	}
	_, unavailable := bounds(d)
	least := wanted(d) - unavailable
	budget := specSum(all) - least - (freshWanted - freshAvailable)
	if specSum(old) == 0 || budget <= 0 {
		return out
	}
	order := byAge(old)
	var cleaned int32
	available := availableSum(all)
	for _, i := range order {
		if cleaned >= budget {
			break
		}
		n := min(budget-cleaned, out[i]-old[i].Status.AvailableReplicas)
		if n > 0 {
			out[i] -= n
			cleaned += n
		}
	}
	spare := available - least
	for _, i := range order {
		if spare <= 0 {
			break
		}
		n := min(out[i], spare)
		out[i] -= n
		spare -= n
	}
	return out
}

func byAge(sets []*appsv1.ReplicaSet) []int {
	order := make([]int, len(sets))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(sets[a].CreationTimestamp.Compare(sets[b].CreationTimestamp.Time), cmp.Compare(sets[a].Name, sets[b].Name))
	})
	return order
}

// proportional spreads a change of the total over several sets in proportion to
// their sizes, in the order of active: larger sets first, the rest of the
// rounding to the first. limit is each set's max-replicas annotation (0: unknown).
func proportional(d *appsv1.Deployment, active []*appsv1.ReplicaSet, limits []int32) []int32 {
	out := make([]int32, len(active))
	total := specSum(active)
	var allowed int32
	if wanted(d) > 0 {
		surge, _ := bounds(d)
		allowed = wanted(d) + surge
	}
	change := allowed - total
	order := make([]int, len(active))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		bySize := cmp.Compare(deref(active[b].Spec.Replicas), deref(active[a].Spec.Replicas))
		age := active[a].CreationTimestamp.Compare(active[b].CreationTimestamp.Time)
		if change > 0 {
			age = -age // newer sets grow first, older ones shrink first
		}
		return cmp.Or(bySize, age)
	})
	var added int32
	for _, i := range order {
		have := deref(active[i].Spec.Replicas)
		out[i] = have
		if change == 0 || have == 0 {
			continue
		}
		share := fraction(d, have, limits[i], allowed)
		left := change - added
		if change > 0 {
			share = min(share, left)
		} else {
			share = max(share, left)
		}
		out[i] += share
		added += share
	}
	if len(order) > 0 && change != 0 {
		first := order[0]
		out[first] = max(0, out[first]+change-added)
	}
	return out
}

// fraction is a set's share of a change, rounded half away from zero.
func fraction(d *appsv1.Deployment, have, limit, allowed int32) int32 {
	if wanted(d) == 0 {
		return -have
	}
	if limit == 0 {
		limit = d.Status.Replicas
	}
	if limit == 0 {
		return 0
	}
	return int32(math.Round(float64(have)*float64(allowed)/float64(limit))) - have
}
