package pod

import (
	"cmp"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/view"
)

// Crash back-off of a container.
const (
	firstCrash = 10 * time.Second
	// MaxRestart is the longest delay unless the node has another.
	MaxRestart = 5 * time.Minute
	resetCrash = 10 * time.Minute
)

// crash counts a container's restarts for the back-off.
type crash struct {
	delay time.Duration
	since time.Time // of the last restart
	told  string    // container ID whose back-off event was reported
}

// progress does what a live pod needs next.
func (a *Actor) progress() {
	if a.ends() {
		a.stopping = true
		a.stopWork()
		return
	}
	sandbox := ""
	if s := a.view.Ready(); s != nil {
		sandbox = s.Id
	} else if a.view.Sandbox() != nil && a.view.AnyRunning() {
		// The sandbox died under its containers: all begin anew in another one.
		a.recreate()
		return
	}
	at := restartedAt(a.pod, a.view)
	if a.restarts = restartingAll(a.pod, a.view, at); a.beginAnew(at) {
		return
	}
	d := plan(a.pod, since(a.view, at), sandbox, func(id string) bool { return a.started[id] })
	if d.finished {
		a.stopping = true
		a.stopWork()
		return
	}
	prepared := a.prepare()
	if !a.fetchAgain.IsZero() && a.volumes != nil {
		if !a.d.Clock.Now().Before(a.fetchAgain) {
			a.updateVolumes()
		}
		a.at(a.fetchAgain)
	}
	for _, c := range d.replace {
		name := c.Metadata.GetName()
		a.kill(c, fmt.Sprintf("Container %s definition changed, will be restarted", name), nil, true)
	}
	a.resize()
	for _, c := range d.start {
		a.bring(c, prepared)
	}
	a.watchRunning()
}

// ends decides whether the pod is to be stopped, and notes why.
func (a *Actor) ends() bool {
	if a.gone || a.pod.DeletionTimestamp != nil || a.terminal != nil {
		return true
	}
	if a.pod.Status.Phase == corev1.PodSucceeded || a.pod.Status.Phase == corev1.PodFailed {
		return true
	}
	if t := a.missed(); t != nil {
		a.terminal = t
		a.event(corev1.EventTypeNormal, t.Reason, t.Message)
		return true
	}
	if !a.adopted {
		// Asked once, before anything of the pod exists.
		a.adopted = true
		if t := a.d.Admit(a.pod); t != nil {
			a.terminal = t
			a.event(corev1.EventTypeWarning, t.Reason, t.Message)
			return true
		}
	}
	return false
}

// missed tells whether the pod's activeDeadlineSeconds have passed.
func (a *Actor) missed() *status.Terminal {
	limit, start := a.pod.Spec.ActiveDeadlineSeconds, a.pod.Status.StartTime
	if limit == nil || start == nil {
		return nil
	}
	end := start.Add(time.Duration(*limit) * time.Second)
	if a.d.Clock.Now().Before(end) {
		a.at(end)
		return nil
	}
	return &status.Terminal{Phase: corev1.PodFailed, Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
}

// bring takes a container one step nearer to running: image first, then, when
// volumes and sandbox stand, the container itself.
func (a *Actor) bring(c *corev1.Container, prepared bool) {
	name := c.Name
	if a.tasks["start/"+name] != nil {
		return
	}
	if until := a.retry[name]; a.d.Clock.Now().Before(until) {
		a.at(until)
		a.tries[name] = until
		return
	}
	if until, held := a.backoff(c); held {
		a.at(until)
		a.tries[name] = until
		return
	}
	delete(a.tries, name)
	if a.images[name] == nil {
		a.fetch(c)
		return
	}
	if prepared {
		a.start(c)
	}
}

// backoff delays a container that ended before.
func (a *Actor) backoff(c *corev1.Container) (time.Time, bool) {
	last := a.view.Latest(c.Name)
	if !last.Exited() {
		return time.Time{}, false
	}
	if h := last.Annotations[podspec.AnnotationHash]; h != "" && h != podspec.Hash(c) {
		delete(a.crash, c.Name) // it is another one now: its failures are its own
	}
	k := a.crash[c.Name]
	if k == nil {
		return time.Time{}, false
	}
	if last.CreatedAt <= restartedAt(a.pod, a.view) && !podspec.RestartsAll(c, last.ExitCode) {
		return time.Time{}, false // another container's end was its own
	}
	finished := time.Unix(0, last.FinishedAt)
	until := finished.Add(k.delay)
	if finished.Sub(k.since) > resetCrash || !a.d.Clock.Now().Before(until) {
		return time.Time{}, false
	}
	full := podspec.FullName(a.pod)
	a.waiting[c.Name] = status.Waiting{Reason: "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", k.delay, c.Name, full)}
	if k.told != last.Id {
		k.told = last.Id
		a.event(corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.Name, full))
	}
	return until, true
}

// restarting notes a restart for the next back-off.
func (a *Actor) restarting(name string, last *view.Container) {
	k, now := a.crash[name], a.d.Clock.Now()
	switch {
	case k == nil || time.Unix(0, last.FinishedAt).Sub(k.since) > resetCrash:
		a.crash[name] = &crash{delay: min(firstCrash, a.maxRestart()), since: now}
	default:
		k.delay, k.since = min(2*k.delay, a.maxRestart()), now
	}
}

func (a *Actor) maxRestart() time.Duration { return cmp.Or(a.d.MaxRestart, MaxRestart) }
