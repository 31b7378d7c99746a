// Package pod runs pods: one actor each, which compares what the API wants with
// what the runtime has, and acts on the difference.
//
// An actor is a goroutine with a mailbox. All its state is its own; slow work
// (pulls, runtime calls, hooks, writes) runs in tasks whose results come back as
// messages. After every batch of messages the actor decides anew from its whole
// state, so no message is needed twice and none may be missed for good:
//
//	API pod ─┐                       ┌─> volumes, sandbox   (setup.go)
//	runtime ─┼─> mailbox ─> sync() ──┼─> images, containers (start.go, plan.go)
//	probes  ─┤      ^                ├─> probes, hooks      (probes.go, lifecycle.go)
//	timer   ─┘      └── results ─────┼─> status             (write.go)
//	                                 └─> stop, clean up     (terminate.go)
//
// A pod's life in the actor: working -> stopping -> stopped -> removed. Stopping
// begins by deletion, a missed deadline, eviction, or when no container is to
// run any more; it never goes back.
package pod

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/view"
	"knarr.dev/knarr/agent/volumes"
)

// Actor runs one pod. Make one with New, then call Run in its own goroutine.
type Actor struct {
	d   *Deps
	box *mailbox
	log *slog.Logger
	id  types.NamespacedName // with the UID these never change
	own types.UID

	ctx      context.Context // of Run
	work     context.Context // ends when stopping begins
	stopWork context.CancelFunc
	tasks    map[string]*task
	wg       sync.WaitGroup
	timer    clock.Timer
	next     time.Time // when to sync again without a message; zero: never

	pod      *corev1.Pod
	view     *view.Pod
	version  int  // counts what was learnt of the runtime
	gone     bool // no longer in the API
	terminal *status.Terminal
	shared   snapshot

	setup      []*step
	volumes    volumes.Prepared
	claimed    bool // all ResourceClaims are prepared
	images     map[string]*pulled
	waiting    map[string]status.Waiting
	resizing   status.Resize
	restarts   bool                 // all containers are being restarted
	retry      map[string]time.Time // when a container may be tried again
	tries      map[string]time.Time // when a container that is held is tried again
	crash      map[string]*crash
	started    map[string]bool // by container ID, see status.Input
	ready      map[string]bool
	hooked     map[string]bool // containers whose postStart hook has ended
	messages   map[string]string
	probes     map[string]*probes
	killed     map[string]bool // containers that are being stopped one by one
	fetchAgain time.Time       // when aging volume content is renewed

	stopping   bool
	stopped    bool // nothing runs and nothing will
	cleaned    bool // sandbox stopped, volumes gone
	acked      bool // the API shows the final status
	removed    bool // nothing is left; Run returns
	hooksRun   map[string]bool
	grace      time.Duration
	graceSet   bool
	adopted    bool
	resumed    bool // the runtime had it when the agent began
	writeDelay time.Duration
	static     bool              // the pod is from a file: its status goes to its mirror
	mirror     *corev1.Pod       // nil: the API has none
	told       *corev1.PodStatus // last written; nil: nothing yet
	foreign    time.Time         // since when the API has what somebody else wrote; zero: it has not
	timeline   *timeline
	pulls      span // from the begin of the first pull of an image to the end of the last
}

// task is slow work under way.
type task struct {
	cancel context.CancelFunc
	work   bool // ends with work
}

// snapshot is what others may read of an actor.
type snapshot struct {
	mu     sync.Mutex
	pod    *corev1.Pod
	view   *view.Pod
	status corev1.PodStatus
	over   bool // nothing runs, nothing will, and the API shows it
	// changed is closed and replaced when view or over is.
	changed chan struct{}
}

// New returns an actor for a pod; v is what the runtime already has of it, nil
// for nothing.
func New(d *Deps, pod *corev1.Pod, v *view.Pod) *Actor {
	a := &Actor{
		d: d, box: newMailbox(), pod: pod, id: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, own: pod.UID, view: v, adopted: v != nil, resumed: v != nil,
		log:   d.Log.With("pod", pod.Namespace+"/"+pod.Name, "uid", string(pod.UID)),
		tasks: map[string]*task{}, images: map[string]*pulled{}, waiting: map[string]status.Waiting{},
		retry: map[string]time.Time{}, tries: map[string]time.Time{}, crash: map[string]*crash{}, started: map[string]bool{}, ready: map[string]bool{},
		hooked: map[string]bool{}, messages: map[string]string{}, probes: map[string]*probes{}, killed: map[string]bool{},
		hooksRun: map[string]bool{}, timeline: newTimeline(d.Clock.Now), static: podspec.IsStatic(pod),
	}
	if a.view == nil {
		a.view = &view.Pod{}
	}
	a.setup = a.steps()
	a.shared.pod, a.shared.view, a.shared.status = pod, a.view, pod.Status
	a.shared.changed = make(chan struct{})
	return a
}

// Run drives the pod until it is removed or ctx ends. When ctx ends, containers
// go on running.
func (a *Actor) Run(ctx context.Context) {
	a.ctx = ctx
	a.work, a.stopWork = context.WithCancel(ctx)
	defer a.wg.Wait()
	defer a.stopWork()
	defer a.stopProbes()
	a.adopt()
	a.sync()
	for !a.removed {
		select {
		case <-ctx.Done():
			if a.timer != nil {
				a.timer.Stop()
			}
			return
		case <-a.box.wake:
			for _, fn := range a.box.take() {
				fn()
			}
			a.sync()
		}
	}
}

// Update gives the actor a newer state of its pod.
func (a *Actor) Update(pod *corev1.Pod) {
	a.box.post(func() { a.accept(pod) })
}

// Deleted tells the actor that its pod is no longer in the API; pod is the last
// state.
func (a *Actor) Deleted(pod *corev1.Pod) {
	a.box.post(func() {
		a.accept(pod)
		a.gone = true
	})
}

// Mirror tells the actor of a static pod which pod of the API shows it; nil: none
// does at the moment.
func (a *Actor) Mirror(pod *corev1.Pod) {
	a.box.post(func() { a.mirror = pod })
}

// Runtime tells the actor what the runtime reports of its containers.
func (a *Actor) Runtime(ev *runtimeapi.ContainerEventResponse) {
	a.box.post(func() { a.observe(ev) })
}

// Refresh has the actor read what the runtime has of its pod, because events may
// have been missed.
func (a *Actor) Refresh() {
	a.box.post(a.relist)
}

// ObjectChanged tells the actor that a ConfigMap or Secret that its pod refers to
// has changed: waiting work is tried at once and volumes are brought up to date.
func (a *Actor) ObjectChanged() {
	a.box.post(func() {
		a.retryNow()
		a.updateVolumes()
	})
}

// Look has the actor look again at what it shows of its pod.
func (a *Actor) Look() { a.box.post(func() {}) }

// Evict ends the pod with a verdict.
func (a *Actor) Evict(t status.Terminal) {
	a.box.post(func() {
		if a.terminal == nil {
			a.terminal = &t
		}
	})
}

// Snapshot returns the actor's pod with the status that is being shown, and its
// containers.
func (a *Actor) Snapshot() (*corev1.Pod, *view.Pod) {
	a.shared.mu.Lock()
	defer a.shared.mu.Unlock()
	pod := *a.shared.pod
	pod.Status = a.shared.status
	return &pod, a.shared.view
}

// Over tells whether nothing of the pod runs any more and the API shows it; Changed
// tells of it.
func (a *Actor) Over() bool {
	a.shared.mu.Lock()
	defer a.shared.mu.Unlock()
	return a.shared.over
}

// Changed returns a channel that is closed when the pod's containers change.
func (a *Actor) Changed() <-chan struct{} {
	a.shared.mu.Lock()
	defer a.shared.mu.Unlock()
	return a.shared.changed
}

// accept takes a pod state unless a newer one is known.
func (a *Actor) accept(pod *corev1.Pod) {
	if older(pod, a.pod) {
		return
	}
	before := a.pod
	a.pod = pod
	if !equalMeta(before, pod) {
		a.updateVolumes()
	}
}

// older compares resource versions, which count up.
func older(a, b *corev1.Pod) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX == nil && errY == nil && x < y
}

// equalMeta tells whether what downward API volumes show is the same.
func equalMeta(a, b *corev1.Pod) bool {
	return mapsEqual(a.Labels, b.Labels) && mapsEqual(a.Annotations, b.Annotations)
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return true
}

// sync decides what to do next from everything that is known.
func (a *Actor) sync() {
	a.next = time.Time{}
	if a.removed {
		return
	}
	if !a.stopping {
		a.progress()
	}
	if a.stopping {
		a.terminate()
	}
	a.writeStatus()
	if a.stopping {
		a.finish()
	}
	a.settle()
	a.arm()
}

// settle tells others once nothing of the pod runs any more and the API shows it.
func (a *Actor) settle() {
	over := a.removed || a.stopped && (a.acked || a.gone)
	a.shared.mu.Lock()
	defer a.shared.mu.Unlock()
	if a.shared.over != over {
		a.shared.over = over
		close(a.shared.changed)
		a.shared.changed = make(chan struct{})
	}
}

// do starts a task unless it is under way. fn runs outside the actor; what it
// returns runs inside.
func (a *Actor) do(key string, work bool, fn func(ctx context.Context) func()) {
	if a.tasks[key] != nil {
		return
	}
	parent := a.ctx
	if work {
		parent = a.work
	}
	ctx, cancel := context.WithCancel(parent)
	a.tasks[key] = &task{cancel: cancel, work: work}
	operation, began := a.operation(), a.d.Clock.Now()
	a.wg.Go(func() {
		defer cancel()
		apply := fn(ctx)
		if !strings.HasPrefix(key, "probe/") {
			a.d.Metrics.Worked(operation, a.d.Clock.Since(began))
		}
		a.box.post(func() {
			delete(a.tasks, key)
			if apply != nil {
				apply()
			}
		})
	})
}

// operation names what the actor is about, in a kubelet's terms.
func (a *Actor) operation() string {
	switch {
	case a.stopping:
		return "kill"
	case a.timeline.over():
		return "sync"
	}
	return "create"
}

// at asks for a sync at t at the latest.
func (a *Actor) at(t time.Time) {
	if !t.IsZero() && (a.next.IsZero() || t.Before(a.next)) {
		a.next = t
	}
}

// arm sets the one timer.
func (a *Actor) arm() {
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	if !a.next.IsZero() && !a.removed {
		a.timer = a.d.Clock.AfterFunc(max(0, a.next.Sub(a.d.Clock.Now())), func() { a.box.post(func() {}) })
	}
}

func (a *Actor) event(eventType, reason, message string) {
	a.d.Recorder.Event(a.pod, eventType, reason, message)
}

func (a *Actor) uid() string { return string(a.own) }

func (a *Actor) logDir() string {
	return podspec.LogDir(a.d.LogRoot, a.id.Namespace, a.id.Name, a.uid())
}
