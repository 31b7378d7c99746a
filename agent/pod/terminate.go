package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/view"
)

const (
	defaultGrace = 30 * time.Second
	// minStop is what a container gets between SIGTERM and SIGKILL even when its
	// preStop hook used the grace period up.
	minStop   = 2 * time.Second
	stopRetry = time.Second
)

// terminate stops the pod's containers, then its sandbox and volumes.
func (a *Actor) terminate() {
	a.stopProbes()
	a.shorten()
	for _, t := range a.tasks {
		if t.work {
			// A start under way may still make a container: wait for its end.
			return
		}
	}
	if until := a.retry["\x00stop"]; a.d.Clock.Now().Before(until) {
		a.at(until)
		return
	}
	if a.view.AnyRunning() {
		a.stopAll()
		return
	}
	if a.tasks["stop"] != nil || a.tasks["relist"] != nil {
		return
	}
	if a.cleaned {
		return
	}
	uid := a.uid()
	a.do("cleanup", false, func(ctx context.Context) func() {
		// Calls that were cut off when stopping began may have had an effect.
		all, err := view.List(ctx, a.d.CRI, uid)
		fresh := all[uid]
		if fresh == nil {
			fresh = &view.Pod{}
		}
		if err == nil && fresh.AnyRunning() {
			return func() { a.replace(fresh) }
		}
		boxes := fresh.Sandboxes
		if err == nil {
			err = a.d.cleanup(ctx, boxes, uid)
		}
		return func() {
			if err != nil {
				a.failedStop("clean up", err)
				return
			}
			a.stopped, a.cleaned = true, true
			a.replace(fresh)
			for _, b := range boxes {
				down := proto.Clone(b).(*runtimeapi.PodSandboxStatus)
				down.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
				a.seeSandbox(down)
			}
		}
	})
}

// cleanup releases what a pod without running containers still holds: its
// network and its volumes. Logs and dead containers stay until it is deleted.
func (d *Deps) cleanup(ctx context.Context, boxes []*runtimeapi.PodSandboxStatus, uid string) error {
	for _, b := range boxes {
		if b.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		if _, err := d.CRI.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.Id}); err != nil && grpcstatus.Code(err) != codes.NotFound {
			return fmt.Errorf("stop sandbox %s: %w", b.Id, err)
		}
	}
	d.Images.Forget(uid)
	if err := d.Volumes.Cleanup(uid); err != nil {
		return err
	}
	return d.release(ctx, uid)
}

// finish lets a stopped pod go: from the API when its deletion was asked for,
// then from the node.
func (a *Actor) finish() {
	if !a.stopped || !a.cleaned {
		return
	}
	if a.gone {
		pod, v := a.pod, a.view
		a.do("remove", false, func(ctx context.Context) func() {
			err := a.d.Remove(ctx, v, string(pod.UID), podspec.LogDir(a.d.LogRoot, pod.Namespace, pod.Name, string(pod.UID)))
			return func() {
				if err != nil {
					a.failedStop("remove", err)
					return
				}
				a.removed = true
			}
		})
		return
	}
	if a.pod.DeletionTimestamp == nil || !a.acked || a.tasks["status"] != nil {
		return
	}
	if a.d.Clock.Now().Before(a.retry["\x00stop"]) || a.retry["\x00deleted"].After(a.d.Clock.Now()) {
		a.at(a.retry["\x00deleted"])
		return
	}
	pod := a.pod
	a.do("delete", false, func(ctx context.Context) func() {
		err := deletePod(ctx, a.d.Client, pod)
		return func() {
			if err != nil {
				a.failedStop("delete", err)
				return
			}
			// Finalizers may keep the object: ask again only after a while.
			a.retry["\x00deleted"] = a.d.Clock.Now().Add(maxRetry)
		}
	})
}

func (a *Actor) failedStop(what string, err error) {
	if a.ctx.Err() != nil {
		return
	}
	a.retry["\x00stop"] = a.d.Clock.Now().Add(stopRetry)
	a.log.Warn("could not "+what+" the pod; it will be tried again", "error", err)
}

// Remove deletes everything of a pod from the node, its logs too.
func (d *Deps) Remove(ctx context.Context, v *view.Pod, uid string, logs ...string) error {
	if d.Removing != nil {
		if err := d.Removing.Acquire(ctx, 1); err != nil {
			return err
		}
		defer d.Removing.Release(1)
	}
	var errs []error
	for _, list := range v.Containers {
		for _, c := range list {
			if _, err := d.CRI.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.Id}); err != nil && grpcstatus.Code(err) != codes.NotFound {
				errs = append(errs, fmt.Errorf("remove container %s: %w", c.Id, err))
			}
			d.unlinkLog(c)
		}
	}
	for _, b := range v.Sandboxes {
		if _, err := d.CRI.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.Id}); err != nil && grpcstatus.Code(err) != codes.NotFound {
			errs = append(errs, fmt.Errorf("remove sandbox %s: %w", b.Id, err))
		}
	}
	if d.Groups != nil {
		for _, path := range podspec.CgroupParents(d.CgroupRoot, uid) {
			errs = append(errs, d.Groups.Remove(ctx, path))
		}
	}
	d.Images.Forget(uid)
	if err := d.Volumes.Cleanup(uid); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, d.release(ctx, uid))
		// Nothing is mounted beneath it any more.
		errs = append(errs, os.RemoveAll(d.Volumes.PodDir(uid)))
	}
	for _, dir := range logs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// gracePeriod is how long the pod's containers may take to end.
func (a *Actor) gracePeriod() time.Duration {
	seconds := int64(defaultGrace / time.Second)
	switch {
	case a.pod.DeletionGracePeriodSeconds != nil:
		seconds = *a.pod.DeletionGracePeriodSeconds
	case a.pod.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *a.pod.Spec.TerminationGracePeriodSeconds
	}
	if t := a.terminal; t != nil && t.Grace != nil {
		seconds = min(seconds, *t.Grace)
	}
	// A pod that is forced out of the API is still asked politely.
	return max(time.Duration(seconds)*time.Second, time.Second)
}

// shorten restarts a stop under way when a later deletion left less time.
func (a *Actor) shorten() {
	g := a.gracePeriod()
	if t := a.tasks["stop"]; t != nil && a.graceSet && g < a.grace {
		t.cancel()
	}
}

// stopAll ends every running container.
func (a *Actor) stopAll() {
	if a.tasks["stop"] != nil {
		return
	}
	grace := a.gracePeriod()
	a.grace, a.graceSet = grace, true
	pod, v := a.pod, a.view
	hook := map[string]bool{}
	for _, list := range v.Containers {
		for _, c := range list {
			if c.Running() && !a.hooksRun[c.Id] {
				a.hooksRun[c.Id] = true
				hook[c.Id] = true
				a.event(corev1.EventTypeNormal, "Killing", "Stopping container "+c.Metadata.GetName())
			}
		}
	}
	a.do("stop", false, func(ctx context.Context) func() {
		err := a.stopPod(ctx, pod, v, grace, hook)
		if ctx.Err() != nil && a.ctx.Err() == nil {
			err = nil // shortened: the next round follows at once
		}
		fresh, listErr := view.List(context.WithoutCancel(ctx), a.d.CRI, string(pod.UID))
		return func() {
			if listErr == nil {
				a.replace(fresh[string(pod.UID)])
			}
			if err = errors.Join(err, listErr); err != nil {
				a.event(corev1.EventTypeWarning, "FailedKillPod", "error killing pod: "+err.Error())
				a.failedStop("stop", err)
			}
		}
	})
}

// stopPod takes the pod out of the data path, then stops its containers: all at
// once, the sidecars after them in reverse order. Everything shares one grace
// period.
func (a *Actor) stopPod(ctx context.Context, pod *corev1.Pod, v *view.Pod, grace time.Duration, hook map[string]bool) error {
	end := a.d.Clock.Now().Add(grace)
	if a.d.Drainer != nil && len(hook) > 0 {
		drain, cancel := context.WithTimeout(ctx, grace)
		if err := a.d.Drainer.Drain(drain, pod); err != nil && ctx.Err() == nil {
			a.log.Warn("the pod's connections were not drained in time", "error", err)
		}
		cancel()
	}
	sidecars := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; podspec.IsSidecar(c) {
			sidecars[c.Name] = true
		}
	}
	var mu sync.Mutex
	var errs []error
	stop := func(c *view.Container) {
		if err := a.stopOne(ctx, pod, c, end, hook[c.Id]); err != nil {
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		}
	}
	var mains sync.WaitGroup
	for name, list := range v.Containers {
		for _, c := range list {
			if c.Running() && !sidecars[name] {
				mains.Go(func() { stop(c) })
			}
		}
	}
	mains.Wait()
	for i := len(pod.Spec.InitContainers) - 1; i >= 0; i-- {
		for _, c := range v.Containers[pod.Spec.InitContainers[i].Name] {
			if c.Running() && sidecars[c.Metadata.GetName()] {
				stop(c)
			}
		}
	}
	return errors.Join(errs...)
}

// stopOne runs a container's preStop hook and stops it within what is left until
// end.
func (a *Actor) stopOne(ctx context.Context, pod *corev1.Pod, c *view.Container, end time.Time, hook bool) error {
	spec := podspec.Find(pod, c.Metadata.GetName())
	if hook && spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
		left := end.Sub(a.d.Clock.Now())
		if left > 0 {
			limit, cancel := context.WithTimeout(ctx, left)
			err := a.d.handle(limit, pod, view.IPs(a.sandboxOf(c)), c.Id, spec, spec.Lifecycle.PreStop)
			cancel()
			if err != nil && ctx.Err() == nil {
				a.d.Recorder.Event(pod, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: "+err.Error())
			}
		}
		if a.d.Clock.Now().Add(minStop).After(end) {
			end = a.d.Clock.Now().Add(minStop)
		}
	}
	return a.d.stopContainer(ctx, c.Id, end.Sub(a.d.Clock.Now()))
}

// sandboxOf finds the sandbox status for hooks; it reads the shared snapshot
// because it runs outside the actor.
func (a *Actor) sandboxOf(c *view.Container) *runtimeapi.PodSandboxStatus {
	_, v := a.Snapshot()
	for _, s := range v.Sandboxes {
		if s.Id == c.SandboxID {
			return s
		}
	}
	return v.Sandbox()
}

func (d *Deps) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := int64((max(grace, 0) + time.Second - 1) / time.Second)
	_, err := d.CRI.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds})
	if err != nil && grpcstatus.Code(err) != codes.NotFound {
		return fmt.Errorf("stop container %s: %s", id, strings.TrimSpace(grpcstatus.Convert(err).Message()))
	}
	return nil
}
