package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/client"
)

// Delays between attempts of a failed write.
const (
	firstWriteRetry = 200 * time.Millisecond
	maxWriteRetry   = 30 * time.Second
	// quietStart is for how long nothing is written of a pod whose containers are
	// being made: most run by then, and a write less for each pod counts when
	// many start at once.
	quietStart = 100 * time.Millisecond
	// swapTime is for how long a container whose definition changed may be missing
	// without a word: one status tells of the new one, as with kubelets.
	swapTime = time.Second
	// reconcileAfter is for how long a status that somebody else wrote stands while
	// the pod has no news of its own, as with kubelets.
	reconcileAfter = 10 * time.Second
)

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func (a *Actor) key() client.Key {
	return client.Key{Resource: client.Pods, Namespace: a.id.Namespace, Name: a.id.Name}
}

// compute returns the status that the pod ought to show now.
func (a *Actor) compute() corev1.PodStatus {
	var health func(string) []corev1.ResourceStatus
	if a.d.Resources != nil {
		health = func(container string) []corev1.ResourceStatus { return a.d.Resources.Health(a.uid(), container) }
	}
	return status.Compute(status.Input{
		Health: health, Alone: a.d.alone(a.pod), Tries: a.tries, Restarting: a.restarts,
		Pod: a.basis(), View: a.view, Waiting: a.held(), Started: a.started, Ready: a.ready, Messages: a.messages,
		NodeIPs: a.d.NodeIPs, Terminal: a.terminal, Resize: a.resizing, Blocked: a.blocked(), Memory: a.d.Memory, Stopped: a.stopped, Now: a.d.Clock.Now(),
	})
}

// basis is the pod as the agent told of it last, and beside that as others want it.
func (a *Actor) basis() *corev1.Pod {
	if a.told == nil || a.static {
		return a.pod
	}
	pod := *a.pod
	pod.Status = status.Foreign(a.told, &a.pod.Status)
	return &pod
}

// tolerated tells whether the API's status differs from want by what somebody else
// wrote alone, which is corrected only after a while.
func (a *Actor) tolerated(want corev1.PodStatus) bool {
	if a.static || a.told == nil || a.stopping || !check.Same(want, a.basis().Status) {
		return false
	}
	if a.foreign.IsZero() {
		a.foreign = a.d.Clock.Now()
	}
	a.at(a.foreign.Add(reconcileAfter))
	return a.stands()
}

// stands tells whether what somebody else wrote is not to be corrected yet.
func (a *Actor) stands() bool {
	return !a.static && a.told != nil && !a.stopping && (a.foreign.IsZero() || a.d.Clock.Now().Before(a.foreign.Add(reconcileAfter)))
}

// held are the containers that are not to be shown as running yet. The runtime may
// tell that a container runs before its start has been seen through; without this
// the pod would be Running and not Ready for a moment, which its watchers may act on.
func (a *Actor) held() map[string]status.Waiting {
	held := a.waiting
	podspec.Containers(a.pod, func(c *corev1.Container, _ bool) {
		if _, ok := held[c.Name]; ok || a.tasks["start/"+c.Name] == nil {
			return
		}
		if latest := a.view.Latest(c.Name); latest.Running() && !a.hooked[latest.Id] {
			held = maps.Clone(held)
			if held == nil {
				held = map[string]status.Waiting{}
			}
			held[c.Name] = status.Waiting{Reason: status.Creating(a.pod)}
		}
	})
	return held
}

// writeStatus brings the API's status up to date: never more than one write is
// under way, and none is made when nothing changed.
func (a *Actor) writeStatus() {
	want := a.compute()
	a.shared.mu.Lock()
	if a.shared.view != a.view {
		close(a.shared.changed)
		a.shared.changed = make(chan struct{})
	}
	a.shared.pod, a.shared.view, a.shared.status = a.pod, a.view, want
	a.shared.mu.Unlock()
	a.acked = false
	shown := a.shown(&want)
	if shown == nil {
		a.acked = true // there is nobody to tell
	}
	if a.gone || shown == nil || a.tasks["status"] != nil {
		return
	}
	if check.Same(want, shown.Status) {
		a.acked, a.foreign = true, time.Time{}
		return
	}
	if a.tolerated(want) {
		return
	}
	if until := a.retry["\x00status"]; a.d.Clock.Now().Before(until) {
		a.at(until)
		return
	}
	if until := a.swapped(); a.d.Clock.Now().Before(until) {
		a.at(until)
		return
	}
	if until := a.timeline.begin.Add(quietStart); a.untold(want) && a.d.Clock.Now().Before(until) {
		a.at(until)
		return
	}
	from := shown
	if a.stands() {
		from = a.basis() // the pod's own news leave the rest as it is
	}
	a.do("status", false, func(ctx context.Context) func() {
		got, err := patchStatus(ctx, a.d.Client, from, want)
		return func() { a.wrote(got, &want, err) }
	})
}

// shown is the pod of the API that shows the status: the pod itself, or a static
// pod's mirror, nil while there is none. A static pod keeps its status itself.
func (a *Actor) shown(want *corev1.PodStatus) *corev1.Pod {
	if !a.static {
		return a.pod
	}
	pod := *a.pod
	pod.Status = *want.DeepCopy()
	a.pod = &pod
	if a.mirror == nil || a.mirror.DeletionTimestamp != nil {
		return nil
	}
	want.ObservedGeneration = a.mirror.Generation
	for i := range want.Conditions {
		want.Conditions[i].ObservedGeneration = a.mirror.Generation
	}
	return a.mirror
}

// swapped is until when nothing is told because a container that ended for its
// definition's change has no successor yet; zero: there is none such.
func (a *Actor) swapped() (until time.Time) {
	if a.stopping || a.static {
		return until
	}
	for i := range a.pod.Spec.Containers {
		c := &a.pod.Spec.Containers[i]
		list := a.view.Containers[c.Name]
		if len(list) == 0 || list[0].Running() && a.tasks["start/"+c.Name] == nil {
			continue
		}
		for _, old := range list {
			h := old.Annotations[podspec.AnnotationHash]
			if old.Exited() && h != "" && h != podspec.Hash(c) {
				if end := time.Unix(0, old.FinishedAt).Add(swapTime); end.After(until) {
					until = end
				}
				break
			}
		}
	}
	return until
}

// untold tells whether the status would be the first, and would say no more than
// that containers are being made.
func (a *Actor) untold(want corev1.PodStatus) bool {
	for _, list := range a.view.Containers {
		for _, c := range list {
			if c.Running() || c.Exited() {
				return false
			}
		}
	}
	return a.pod.Status.StartTime == nil && want.Phase == corev1.PodPending && !a.stopping && len(a.waiting) == 0
}

// wrote applies the outcome of a status write.
func (a *Actor) wrote(got *corev1.Pod, told *corev1.PodStatus, err error) {
	switch {
	case err == nil:
		a.told, a.writeDelay = told, 0
		delete(a.retry, "\x00status")
		if a.static {
			if a.mirror != nil && a.mirror.UID == got.UID && !older(got, a.mirror) {
				a.mirror = got
			}
		} else {
			a.accept(got)
		}
		a.timed(got)
	case a.static && (apierrors.IsNotFound(err) || apierrors.IsConflict(err)):
		a.mirror = nil // another follows
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		// Gone, or replaced by another pod of the same name.
		if a.ctx.Err() == nil && a.missingFromAPI() {
			a.gone = true
			return
		}
		fallthrough
	default:
		a.writeDelay = min(max(2*a.writeDelay, firstWriteRetry), maxWriteRetry)
		a.retry["\x00status"] = a.d.Clock.Now().Add(a.writeDelay)
		if a.ctx.Err() == nil {
			a.log.Warn("the pod's status could not be written; it will be tried again", "error", err)
		}
	}
}

// timed logs how long the phases of the pod's start took, once it runs.
func (a *Actor) timed(pod *corev1.Pod) {
	if pod.Status.Phase != corev1.PodRunning {
		return
	}
	a.timeline.mark("written")
	if marks := a.timeline.end(); marks != nil {
		now := a.d.Clock.Now()
		if !a.resumed {
			a.d.Metrics.PodRuns(now.Sub(a.timeline.begin), now.Sub(pod.CreationTimestamp.Time), a.pulls.together(a.initializing()))
		}
		a.log.LogAttrs(a.ctx, slog.LevelDebug, "the pod runs; time from its arrival at the node to each phase", marks...)
	}
}

// initializing is when the pod's init containers ran, those apart that go on.
func (a *Actor) initializing() (s span) {
	for i := range a.pod.Spec.InitContainers {
		c := &a.pod.Spec.InitContainers[i]
		if ran := a.view.Latest(c.Name); ran.Exited() && !podspec.IsSidecar(c) {
			s = s.with(time.Unix(0, ran.StartedAt), time.Unix(0, ran.FinishedAt))
		}
	}
	return s
}

// missingFromAPI asks whether this very pod is gone from the API.
func (a *Actor) missingFromAPI() bool {
	got, err := client.Get[*corev1.Pod](a.ctx, a.d.Client, a.key())
	return apierrors.IsNotFound(err) || err == nil && got.UID != a.pod.UID
}

// patchStatus writes the difference between a pod's status and want. The UID is
// part of the patch, so that a namesake is never touched.
func patchStatus(ctx context.Context, c client.Interface, pod *corev1.Pod, want corev1.PodStatus) (*corev1.Pod, error) {
	type meta struct {
		UID types.UID `json:"uid"`
	}
	type doc struct {
		Metadata meta             `json:"metadata"`
		Status   corev1.PodStatus `json:"status"`
	}
	before, err := json.Marshal(struct {
		Status corev1.PodStatus `json:"status"`
	}{pod.Status})
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(doc{meta{pod.UID}, want})
	if err != nil {
		return nil, err
	}
	data, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compute the status patch of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	k := client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name}.Sub("status")
	obj, err := c.Patch(ctx, k, client.Patch{Type: types.StrategicMergePatchType, Data: data})
	if err != nil {
		return nil, fmt.Errorf("write the status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	got, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("write the status of pod %s/%s: server answered a %T", pod.Namespace, pod.Name, obj)
	}
	if got.UID != pod.UID {
		return nil, apierrors.NewConflict(client.Pods.GroupResource(), pod.Name, fmt.Errorf("the pod was replaced by another of the same name"))
	}
	return got, nil
}

// deletePod removes a stopped pod from the API.
func deletePod(ctx context.Context, c client.Interface, pod *corev1.Pod) error {
	zero := int64(0)
	err := c.Delete(ctx, client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name},
		metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
