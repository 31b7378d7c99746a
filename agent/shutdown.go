package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/shutdown"
	"knarr.dev/knarr/agent/status"
)

// Inhibitor has the machine wait for the node's pods before it goes down: systemd's
// logind does.
type Inhibitor interface {
	// MaxDelay is how long the machine waits at most.
	MaxDelay(ctx context.Context) (time.Duration, error)
	// Watch says true when the machine is about to go down, false when that was called
	// off. The channel is closed when nothing more will be heard.
	Watch(ctx context.Context) (<-chan bool, error)
	// Inhibit has the machine wait until the lock is closed.
	Inhibit(ctx context.Context) (io.Closer, error)
	Close() error
}

// inhibitRetry is the pause before an inhibitor that has gone is looked for again.
const inhibitRetry = time.Minute

// Periods of a shutdown that is asked for although none is configured.
const (
	askedTotal    = 30 * time.Second
	askedCritical = 10 * time.Second
)

// ending is a node that is shutting down.
type ending struct {
	going atomic.Bool
	one   sync.Mutex
}

// Shutdown ends the node's pods, those that matter less first, and returns when they
// have ended or their time has passed. The node is not ready from its beginning on and
// takes no more pods.
func (a *Agent) Shutdown(ctx context.Context) {
	a.ending.going.Store(true)
	a.node.Changed()
	a.ending.one.Lock()
	defer a.ending.one.Unlock()
	periods := a.cfg.ShutdownPeriods
	if shutdown.Total(periods) == 0 {
		periods = shutdown.Periods(askedTotal, askedCritical)
	}
	actors := a.pods.all()
	var pods []*corev1.Pod
	for _, act := range actors {
		if p, v := act.Snapshot(); v.AnyRunning() || p.Status.Phase == corev1.PodPending {
			pods = append(pods, p)
		}
	}
	for _, g := range shutdown.Groups(periods, pods) {
		a.cfg.Log.Info("the node is shutting down: pods are ended", "pods", len(g.Pods), "priority", g.Priority, "within", g.Grace)
		var list []*pod.Actor
		for _, p := range g.Pods {
			act := actors[string(p.UID)]
			grace := int64(g.Grace / time.Second)
			act.Evict(status.Terminal{Phase: corev1.PodFailed, Reason: "Terminated", Message: "Pod was terminated in response to imminent node shutdown.",
				Disruption: terminationByKubelet, Grace: &grace})
			list = append(list, act)
		}
		if !a.ended(ctx, list, g.Grace) {
			a.cfg.Log.Warn("the node is shutting down and some pods have not ended in time", "priority", g.Priority)
		}
	}
}

// ended waits until the pods' containers have ended and the API knows it, or the time
// has passed.
func (a *Agent) ended(ctx context.Context, list []*pod.Actor, within time.Duration) bool {
	limit := a.cfg.Clock.NewTimer(within)
	defer limit.Stop()
	for _, act := range list {
		for {
			changed := act.Changed()
			if act.Over() {
				break
			}
			select {
			case <-changed:
			case <-limit.C():
				return false
			case <-ctx.Done():
				return false
			}
		}
	}
	return true
}

// inhibit waits for the machine's shutdown, until ctx ends. Without an inhibitor, or
// without a time for the pods, there is nothing to wait for.
func (a *Agent) inhibit(ctx context.Context) error {
	if a.cfg.Inhibitor == nil || shutdown.Total(a.cfg.ShutdownPeriods) == 0 {
		return nil
	}
	for ctx.Err() == nil {
		err := a.inhibitOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		a.cfg.Log.Warn("the machine does not wait for the node's pods when it goes down; it is tried again", "pause", inhibitRetry, "error", err)
		t := a.cfg.Clock.NewTimer(inhibitRetry)
		select {
		case <-t.C():
		case <-ctx.Done():
		}
		t.Stop()
	}
	return ctx.Err()
}

func (a *Agent) inhibitOnce(ctx context.Context) (err error) {
	in, err := a.cfg.Inhibitor(ctx)
	if err != nil {
		return err
	}
	defer in.Close()
	if longest, err := in.MaxDelay(ctx); err != nil {
		return err
	} else if total := shutdown.Total(a.cfg.ShutdownPeriods); longest < total {
		a.cfg.Log.Warn("the machine waits less than the node's pods may take to end: set InhibitDelayMaxSec in /etc/systemd/logind.conf", "waits", longest, "wanted", total)
	}
	down, err := in.Watch(ctx)
	if err != nil {
		return err
	}
	lock, err := in.Inhibit(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if lock != nil {
			lock.Close()
		}
	}()
	for {
		select {
		case going, ok := <-down:
			switch {
			case !ok:
				return errors.New("nothing more is heard of the machine's shutdown")
			case going:
				a.Shutdown(ctx)
				if err := lock.Close(); err != nil {
					return err
				}
				lock = nil
			default: // called off
				a.ending.going.Store(false)
				a.node.Changed()
				if lock == nil {
					if lock, err = in.Inhibit(ctx); err != nil {
						return err
					}
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// refuses tells why the node takes no such pod at the moment; nil: it does.
func (a *Agent) refuses(p *corev1.Pod) *status.Terminal {
	if a.ending.going.Load() {
		return &status.Terminal{Phase: corev1.PodFailed, Reason: "NodeShutdown", Message: "Pod was rejected as the node is shutting down."}
	}
	return a.pressure.refuses(p)
}
