package agent

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
)

// weighs has the burstable pods weighed again if a is one of them.
func (p *pods) weighs(a *pod.Actor) {
	if obj, _ := a.Snapshot(); p.classes == nil || podspec.QOS(obj) != corev1.PodQOSBurstable {
		return
	}
	select {
	case p.weigh <- struct{}{}:
	default:
	}
}

// weighing keeps the weight of all burstable pods together until ctx ends.
func (p *pods) weighing(ctx context.Context) {
	last := int64(-1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.weigh:
		}
		var sum int64
		for _, a := range p.all() {
			obj, _ := a.Snapshot()
			if podspec.QOS(obj) == corev1.PodQOSBurstable && obj.Status.Phase != corev1.PodSucceeded && obj.Status.Phase != corev1.PodFailed {
				requests := resourcehelper.PodRequests(obj, resourcehelper.PodResourcesOptions{})
				sum += requests.Cpu().MilliValue()
			}
		}
		if sum == last {
			continue
		}
		if err := p.classes.Burstable(sum); err != nil {
			p.deps.Log.Warn("the burstable pods do not weigh what they request", "cpu", sum, "error", err)
			continue
		}
		last = sum
	}
}
