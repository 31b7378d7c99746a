package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/view"
)

// resizeRetry is the pause before a resize that failed, or that the node has no
// room for at the moment, is tried again.
const resizeRetry = 10 * time.Second

// resizing is a container whose limits are not those that its pod asks for.
type resizing struct {
	c    *corev1.Container
	last *view.Container
	want *runtimeapi.LinuxContainerResources
	// shrink: it gives memory or CPU back and takes nothing.
	shrink bool
	// restart: its policy does not allow to change what changes while it runs.
	restart bool
}

// resizes compares the running containers' limits with those of the pod.
// nodeMemory is in bytes; alone tells which containers have CPUs alone.
func resizes(pod *corev1.Pod, v *view.Pod, nodeMemory int64, alone func(container string) bool) (out []resizing) {
	podspec.Containers(pod, func(c *corev1.Container, init bool) {
		if init && !podspec.IsSidecar(c) {
			return
		}
		last := v.Latest(c.Name)
		have := last.Limits()
		if !last.Running() || have == nil {
			return
		}
		want := podspec.LinuxResources(pod, c, nodeMemory)
		if alone(c.Name) {
			want.CpuQuota = 0
		}
		if podspec.SameLimits(have, want) {
			return
		}
		for _, limit := range []struct{ have, want *int64 }{{&have.CpuQuota, &want.CpuQuota}, {&have.MemoryLimitInBytes, &want.MemoryLimitInBytes}} {
			if *limit.want == 0 && *limit.have > 0 {
				*limit.want = -1 // none any more; 0 would leave what is
			}
		}
		r := resizing{c: c, last: last, want: want}
		cpu := have.CpuQuota != want.CpuQuota || have.CpuShares != want.CpuShares
		memory := have.MemoryLimitInBytes != want.MemoryLimitInBytes
		r.restart = cpu && restartsFor(c, corev1.ResourceCPU) || memory && restartsFor(c, corev1.ResourceMemory)
		r.shrink = !more(want.CpuQuota, have.CpuQuota) && want.CpuShares <= have.CpuShares && !more(want.MemoryLimitInBytes, have.MemoryLimitInBytes)
		out = append(out, r)
	})
	return out
}

// more compares limits, of which none at all is the highest.
func more(a, b int64) bool { return a > b && b > 0 || a <= 0 && b > 0 }

func restartsFor(c *corev1.Container, name corev1.ResourceName) bool {
	return slices.ContainsFunc(c.ResizePolicy, func(p corev1.ContainerResizePolicy) bool {
		return p.ResourceName == name && p.RestartPolicy == corev1.RestartContainer
	})
}

// resize brings the limits of the running containers to what the pod asks for, if
// the node has room: what shrinks first, then the pod's own group, then what grows.
func (a *Actor) resize() {
	list := resizes(a.pod, a.view, a.d.Memory, a.d.alone(a.pod))
	if len(list) == 0 {
		a.resizing = status.Resize{}
		return
	}
	if a.tasks["resize"] != nil {
		return
	}
	if until := a.retry["\x00resize"]; a.d.Clock.Now().Before(until) {
		a.at(until)
		return
	}
	if pending := a.room(); pending != nil {
		a.resizing = status.Resize{Pending: pending}
		a.again("\x00resize", resizeRetry)
		return
	}
	a.resizing = status.Resize{Doing: true, Error: a.resizing.Error}
	var inPlace []resizing
	for _, r := range list {
		a.d.Swap.Apply(r.want, a.pod, r.c, a.d.Memory)
		if r.restart {
			a.kill(r.last, fmt.Sprintf("Container %s resize requires restart", r.c.Name), nil, true)
		} else {
			inPlace = append(inPlace, r)
		}
	}
	if len(inPlace) == 0 {
		return
	}
	slices.SortStableFunc(inPlace, func(x, y resizing) int {
		switch {
		case x.shrink == y.shrink:
			return 0
		case x.shrink:
			return -1
		}
		return 1
	})
	pod, sandbox := a.pod, a.view.Ready()
	a.do("resize", true, func(ctx context.Context) func() {
		err := a.applyResize(ctx, pod, sandbox.GetId(), inPlace)
		var seen []*view.Container
		for _, r := range inPlace {
			if st, e := view.Status(ctx, a.d.CRI, r.last.Id); e == nil {
				seen = append(seen, &view.Container{ContainerStatus: st, SandboxID: r.last.SandboxID})
			}
		}
		return func() {
			for _, c := range seen {
				a.see(c)
			}
			a.resizing.Error = ""
			if err != nil {
				a.resizing.Error = err.Error()
				a.again("\x00resize", resizeRetry)
				a.log.Warn("the pod's resize failed; it will be tried again", "error", err)
			}
		}
	})
}

// room says why the node cannot give the pod what it wants; nil: it can.
func (a *Actor) room() *status.Waiting {
	if a.d.Resizable == nil {
		return nil
	}
	return a.d.Resizable(a.pod)
}

// again asks for another attempt of key after a pause.
func (a *Actor) again(key string, pause time.Duration) {
	until := a.d.Clock.Now().Add(pause)
	a.retry[key] = until
	a.at(until)
}

func (a *Actor) applyResize(ctx context.Context, pod *corev1.Pod, sandbox string, list []resizing) error {
	var errs []error
	grown := false
	whole := func() {
		if grown {
			return
		}
		grown = true
		_, err := a.d.CRI.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: sandbox, Resources: podspec.PodResources(pod), Overhead: podspec.Overhead(pod)})
		if err != nil {
			errs = append(errs, fmt.Errorf("change the limits of the pod: %w", err))
		}
	}
	for _, r := range list {
		if !r.shrink {
			whole()
		}
		_, err := a.d.CRI.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: r.last.Id, Linux: r.want})
		if err != nil {
			errs = append(errs, fmt.Errorf("change the limits of container %s: %w", r.c.Name, err))
		}
	}
	whole()
	return errors.Join(errs...)
}
