package pod

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/probe"
	"knarr.dev/knarr/agent/view"
)

// firstEager is the first pause between attempts of a readiness or startup probe
// that has not succeeded yet. The pause doubles up to the probe's period, so a
// container is ready soon after it could be; failures still count once a period.
const firstEager = 100 * time.Millisecond

// probes are the workers of one running container.
type probes struct {
	startup, liveness, readiness *worker
}

func (p *probes) stop() {
	for _, w := range []*worker{p.startup, p.liveness, p.readiness} {
		if w != nil {
			w.stop()
		}
	}
}

// worker runs one probe by timer. Its state belongs to the actor.
type worker struct {
	kind      string // Startup, Liveness, Readiness
	spec      *corev1.Probe
	timer     clock.Timer
	stopped   bool
	successes int
	failures  int
	passed    bool // has succeeded at least once
	eager     time.Duration
	counted   time.Time // when a failure was last counted
}

func (w *worker) stop() {
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

func seconds(n, def int32) time.Duration {
	if n <= 0 {
		n = def
	}
	return time.Duration(n) * time.Second
}

func (w *worker) period() time.Duration { return seconds(w.spec.PeriodSeconds, 10) }

// watchRunning keeps a set of probes for every running container whose postStart
// hook has ended, and derives started and ready where there is no probe.
func (a *Actor) watchRunning() {
	podspec.Containers(a.pod, func(c *corev1.Container, init bool) {
		ct := a.view.Latest(c.Name)
		if !ct.Running() || !a.hooked[ct.Id] || a.killed[ct.Id] {
			return
		}
		p := a.probes[ct.Id]
		if p == nil {
			p = &probes{}
			a.probes[ct.Id] = p
		}
		if c.StartupProbe == nil {
			a.started[ct.Id] = true
		} else if !a.started[ct.Id] && p.startup == nil {
			p.startup = a.begin(c, ct, "Startup", c.StartupProbe)
		}
		if !a.started[ct.Id] {
			return
		}
		if c.ReadinessProbe == nil {
			a.ready[ct.Id] = true
		} else if p.readiness == nil {
			p.readiness = a.begin(c, ct, "Readiness", c.ReadinessProbe)
			p.readiness.passed = a.ready[ct.Id]
		}
		if c.LivenessProbe != nil && p.liveness == nil {
			p.liveness = a.begin(c, ct, "Liveness", c.LivenessProbe)
		}
	})
}

// begin schedules a probe's first run: after its initial delay, counted from the
// start of the container. A container that was found running is probed at a
// point of the period that differs from container to container.
func (a *Actor) begin(c *corev1.Container, ct *view.Container, kind string, spec *corev1.Probe) *worker {
	w := &worker{kind: kind, spec: spec}
	wait := time.Unix(0, ct.StartedAt).Add(seconds(spec.InitialDelaySeconds, 0)).Sub(a.d.Clock.Now())
	if wait <= 0 && a.d.Clock.Since(time.Unix(0, ct.StartedAt)) > w.period() {
		h := fnv.New32a()
		h.Write([]byte(ct.Id + kind))
		wait = time.Duration(uint64(h.Sum32()) % uint64(w.period()))
	}
	a.schedule(w, c, ct, max(wait, 0))
	return w
}

func (a *Actor) schedule(w *worker, c *corev1.Container, ct *view.Container, wait time.Duration) {
	if w.stopped {
		return
	}
	if wait <= 0 {
		a.probe(w, c, ct)
		return
	}
	w.timer = a.d.Clock.AfterFunc(wait, func() {
		a.box.post(func() { a.probe(w, c, ct) })
	})
}

// probe runs a worker's probe once.
func (a *Actor) probe(w *worker, c *corev1.Container, ct *view.Container) {
	if w.stopped || a.stopping {
		return
	}
	t := probe.Target{Container: c, ContainerID: ct.Id}
	if ips := view.IPs(a.view.Ready()); len(ips) > 0 {
		t.IP = ips[0]
	}
	if a.pod.Spec.HostNetwork && len(a.d.NodeIPs) > 0 {
		t.IP = a.d.NodeIPs[0]
	}
	timeout := seconds(w.spec.TimeoutSeconds, 1)
	pod := a.pod
	a.do("probe/"+w.kind+"/"+ct.Id, true, func(ctx context.Context) func() {
		begin := a.d.Clock.Now()
		r, out := probe.Run(ctx, a.d.CRI, t, w.spec.ProbeHandler, timeout)
		if ctx.Err() == nil {
			a.d.Metrics.Probed(pod, c.Name, w.kind, outcomes[r], a.d.Clock.Since(begin))
		}
		return func() {
			if !w.stopped && !a.stopping {
				a.probed(w, c, ct, r, out)
			}
		}
	})
}

// outcomes are the names of results in metrics.
var outcomes = map[probe.Result]string{probe.Success: "successful", probe.Failure: "failed", probe.Unknown: "unknown"}

// probed counts a result and acts when a threshold is reached.
func (a *Actor) probed(w *worker, c *corev1.Container, ct *view.Container, r probe.Result, out string) {
	now := a.d.Clock.Now()
	wait := w.period()
	switch r {
	case probe.Unknown:
		a.event(corev1.EventTypeWarning, "ProbeError", fmt.Sprintf("%s probe errored and resulted in unknown state: %s", w.kind, out))
	case probe.Success:
		w.successes, w.failures = w.successes+1, 0
		if need := max(1, int(w.spec.SuccessThreshold)); w.successes >= need {
			w.passed = true
			switch w.kind {
			case "Startup":
				a.started[ct.Id] = true
				w.stop()
				return
			case "Readiness":
				a.ready[ct.Id] = true
			}
		}
	case probe.Failure:
		w.successes = 0
		if !w.passed && w.kind != "Liveness" {
			w.eager = max(2*w.eager, firstEager)
			wait = min(wait, w.eager)
		}
		if !w.counted.IsZero() && now.Sub(w.counted) < w.period() {
			break
		}
		w.counted = now
		w.failures++
		a.event(corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", w.kind, out))
		need := int(w.spec.FailureThreshold)
		if need <= 0 {
			need = 3
		}
		if w.failures < need {
			break
		}
		if w.kind == "Readiness" {
			a.ready[ct.Id] = false
			break
		}
		a.unhealthy(w, c, ct)
		return
	}
	a.schedule(w, c, ct, wait)
}

// unhealthy stops a container whose liveness or startup probe gave up on it.
func (a *Actor) unhealthy(w *worker, c *corev1.Container, ct *view.Container) {
	a.ready[ct.Id] = false
	kind := "liveness"
	if w.kind == "Startup" {
		kind = "startup"
	}
	why := fmt.Sprintf("Container %s failed %s probe", c.Name, kind)
	if podspec.IsSidecar(c) || podspec.ShouldRestart(a.pod, c, 137) {
		why += ", will be restarted"
	}
	a.kill(ct, why, w.spec.TerminationGracePeriodSeconds, true)
}

// stopProbes ends all probing.
func (a *Actor) stopProbes() {
	for id, p := range a.probes {
		p.stop()
		delete(a.probes, id)
	}
}
