package pod

import (
	"context"
	"fmt"
	"maps"
	"time"

	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/probe"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/view"
)

// hookTimeout bounds an HTTP lifecycle hook.
const hookTimeout = 30 * time.Second

// postStart runs a container's postStart hook; until it has ended the container
// is not shown as running.
func (a *Actor) postStart(c *corev1.Container, id string) {
	a.waiting[c.Name] = status.Waiting{Reason: status.Creating(a.pod)}
	pod, ips := a.pod, view.IPs(a.view.Ready())
	a.do("poststart/"+id, true, func(ctx context.Context) func() {
		err := a.d.handle(ctx, pod, ips, id, c, c.Lifecycle.PostStart)
		return func() {
			delete(a.waiting, c.Name)
			if err == nil {
				a.hooked[id] = true
				return
			}
			if a.stopping {
				return
			}
			a.event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: "+err.Error())
			a.waiting[c.Name] = status.Waiting{Reason: reasonPostStart, Message: "PostStartHook failed"}
			if ct := a.view.ByID(id); ct.Running() {
				a.kill(ct, "FailedPostStartHook", nil, true)
			}
		}
	})
}

// handle runs a lifecycle handler. Its error is what the event says.
func (d *Deps) handle(ctx context.Context, pod *corev1.Pod, ips []string, id string, c *corev1.Container, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		resp, err := d.CRI.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: h.Exec.Command})
		if err != nil {
			return fmt.Errorf("%s", grpcstatus.Convert(err).Message())
		}
		if resp.ExitCode != 0 {
			return fmt.Errorf("command '%s' exited with %d: %s", joined(h.Exec.Command), resp.ExitCode, append(resp.Stderr, resp.Stdout...))
		}
		return nil
	case h.HTTPGet != nil:
		t := probe.Target{Container: c, ContainerID: id}
		if len(ips) > 0 {
			t.IP = ips[0]
		}
		if pod.Spec.HostNetwork && len(d.NodeIPs) > 0 {
			t.IP = d.NodeIPs[0]
		}
		return probe.Call(ctx, t, h.HTTPGet, hookTimeout, "kube-lifecycle/1.36")
	case h.Sleep != nil:
		timer := d.Clock.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C():
			return nil
		case <-ctx.Done():
			return fmt.Errorf("container terminated before sleep hook finished")
		}
	case h.TCPSocket != nil:
		return nil // accepted by the API for old manifests, never acted on
	}
	return fmt.Errorf("the handler has no action that this node supports")
}

func joined(cmd []string) string {
	s := ""
	for i, p := range cmd {
		if i > 0 {
			s += " "
		}
		s += p
	}
	return s
}

// kill stops one running container of a live pod; it is started again by the
// restart policy. grace overrides the pod's grace period, in seconds; hook says
// whether its preStop hook is run.
func (a *Actor) kill(c *view.Container, why string, grace *int64, hook bool) {
	if a.killed[c.Id] {
		return
	}
	a.killed[c.Id] = true
	pod := a.pod
	left := defaultGrace
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		left = time.Duration(*s) * time.Second
	}
	if grace != nil {
		left = time.Duration(*grace) * time.Second
	}
	if p := a.probes[c.Id]; p != nil {
		p.stop()
	}
	a.event(corev1.EventTypeNormal, "Killing", why)
	a.do("kill/"+c.Id, true, func(ctx context.Context) func() {
		err := a.stopOne(ctx, pod, c, a.d.Clock.Now().Add(left), hook)
		st, _ := view.Status(ctx, a.d.CRI, c.Id)
		return func() {
			delete(a.killed, c.Id)
			if st != nil {
				a.see(&view.Container{ContainerStatus: st, SandboxID: c.SandboxID})
			}
			if err != nil && !a.stopping {
				// Fresh probes find it unhealthy again.
				delete(a.probes, c.Id)
				a.log.Warn("could not stop a container; it stays until its probes fail again", "container", c.Metadata.GetName(), "error", err)
			}
		}
	})
}

// recreate stops what still runs in a dead sandbox; a new one follows.
func (a *Actor) recreate() {
	if a.tasks["recreate"] != nil {
		return
	}
	pod, v, version, grace := a.pod, a.view, a.version, a.gracePeriod()
	a.event(corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	a.do("recreate", true, func(ctx context.Context) func() {
		err := a.stopPod(ctx, pod, v, grace, nil)
		if err != nil {
			a.log.Warn("could not stop containers of a dead sandbox", "error", err)
		}
		return a.relisting(ctx, version)
	})
}

// relisting reads the pod's whole state; the result is applied in the actor.
func (a *Actor) relisting(ctx context.Context, version int) func() {
	fresh, err := view.List(ctx, a.d.CRI, a.uid())
	return func() {
		if err == nil && a.version != version {
			// Something was learnt meanwhile that the listing may not hold yet.
			a.relist()
			return
		}
		if err != nil {
			if a.ctx.Err() == nil {
				a.log.Warn("the runtime could not be asked for the pod's containers", "error", err)
			}
			return
		}
		a.replace(fresh[a.uid()])
	}
}

// forget drops a container that was removed.
func (a *Actor) forget(id string) {
	c := a.view.ByID(id)
	if c == nil {
		return
	}
	next := &view.Pod{Sandboxes: a.view.Sandboxes, Containers: maps.Clone(a.view.Containers)}
	var rest []*view.Container
	for _, o := range next.Containers[c.Metadata.GetName()] {
		if o.Id != id {
			rest = append(rest, o)
		}
	}
	next.Containers[c.Metadata.GetName()] = rest
	a.view = next
	delete(a.started, id)
	delete(a.ready, id)
	delete(a.hooked, id)
	delete(a.messages, id)
}
