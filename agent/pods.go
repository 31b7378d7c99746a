package agent

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/resources"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/view"
	"knarr.dev/knarr/client"
)

// Pauses when the runtime's event stream breaks.
const (
	firstReconnect = 20 * time.Millisecond
	maxReconnect   = 5 * time.Second
	streamSettles  = time.Second
)

// pods keeps one actor for each pod of the node and hands events to them.
type pods struct {
	deps  *pod.Deps
	node  string
	cache client.Cache
	names *objects // what pods refer to

	mu     sync.Mutex
	ctx    context.Context
	wg     sync.WaitGroup
	actors map[string]*pod.Actor // by UID
	first  map[string]*view.Pod  // what the runtime had at the start, by UID
	files  *statics
	// refuses says why the node takes no such pod at the moment; nil: it does.
	refuses func(*corev1.Pod) *status.Terminal

	resources *resources.Manager // nil: nothing is set aside for pods
	sysctls   []string           // patterns of unsafe ones that pods may have
	classes   Classes            // nil: nobody weighs them
	weigh     chan struct{}      // signalled when burstable pods have come or gone
	began     chan struct{}      // a container has begun
	// dropClaims undoes the claims of pods that are not among those; nil: there are none.
	dropClaims func(ctx context.Context, keep map[string]bool)
	// pinned tells which manager has set something aside for a pod alone, which cannot be
	// resized then; nil, or empty: none has.
	pinned func(uid string) string
	// managed lists the resources that plugins share out; nil: there are none.
	managed func() (capacity, allocatable corev1.ResourceList)

	admission sync.Mutex
	admitted  map[string]bool // pods that count against the node's resources
}

func newPods(d *pod.Deps, node string) *pods {
	return &pods{deps: d, node: node, cache: d.Client.Cache(client.Pods, "spec.nodeName="+node), actors: map[string]*pod.Actor{}, began: make(chan struct{}, 1), weigh: make(chan struct{}, 1), admitted: map[string]bool{}}
}

// run adopts what the runtime has, then follows API and runtime until ctx ends.
func (p *pods) run(ctx context.Context, o *objects) error {
	p.ctx, p.names = ctx, o
	defer p.wg.Wait()
	if err := p.adopt(ctx); err != nil {
		return err
	}
	// Static pods do not wait for the API.
	p.files.load()
	p.wg.Go(func() { p.files.run(ctx) })
	if err := p.cache.WaitSynced(ctx); err != nil {
		return fmt.Errorf("wait for the node's pods: %w", err)
	}
	defer o.follow(p.objectChanged)()
	defer p.cache.Subscribe(p.changed)()
	p.orphans(ctx)
	p.wg.Go(func() { p.weighing(ctx) })
	return p.follow(ctx)
}

// adopt lists the runtime, waiting for it if it is not up yet.
func (p *pods) adopt(ctx context.Context) error {
	for delay := firstReconnect; ; delay = min(2*delay, maxReconnect) {
		began := p.deps.Clock.Now()
		v, err := view.List(ctx, p.deps.CRI, "")
		p.deps.Metrics.Listed(began, p.deps.Clock.Now())
		if err == nil {
			p.admission.Lock()
			for uid := range v {
				p.admitted[uid] = true
			}
			p.admission.Unlock()
			p.mu.Lock()
			p.first = v
			p.mu.Unlock()
			return nil
		}
		p.deps.Log.Warn("the container runtime does not answer yet", "error", err)
		if !p.pause(ctx, delay) {
			return ctx.Err()
		}
	}
}

func (p *pods) pause(ctx context.Context, d time.Duration) bool {
	t := p.deps.Clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C():
		return true
	case <-ctx.Done():
		return false
	}
}

// changed hands an API event to the pod's actor.
func (p *pods) changed(ev client.Event) {
	obj, ok := ev.Object.(*corev1.Pod)
	if !ok {
		return
	}
	if old, ok := ev.Old.(*corev1.Pod); ok && old.UID != obj.UID && !podspec.IsMirror(old) {
		p.gone(old)
	}
	if p.files.mirrored(ev, obj) {
		return
	}
	if ev.Type == client.Deleted {
		p.gone(obj)
		return
	}
	uid := string(obj.UID)
	p.names.hold(obj)
	p.mu.Lock()
	a := p.actors[uid]
	if a == nil && p.ctx.Err() == nil {
		a = pod.New(p.deps, obj, p.first[uid])
		delete(p.first, uid)
		p.start(uid, a)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	if a != nil {
		a.Update(obj)
		p.weighs(a)
	}
}

// start runs an actor until its pod is removed; the lock is held.
func (p *pods) start(uid string, a *pod.Actor) {
	p.actors[uid] = a
	p.wg.Go(func() {
		p.weighs(a)
		a.Run(p.ctx)
		if p.ctx.Err() == nil {
			gone, _ := a.Snapshot()
			p.deps.Metrics.Forget(gone)
		}
		p.names.release(types.UID(uid))
		p.mu.Lock()
		delete(p.actors, uid)
		p.mu.Unlock()
		p.files.kick()
		p.admission.Lock()
		delete(p.admitted, uid)
		p.admission.Unlock()
		p.weighs(a)
	})
}

func (p *pods) gone(obj *corev1.Pod) {
	if a := p.actor(string(obj.UID)); a != nil {
		a.Deleted(obj)
	}
}

func (p *pods) actor(uid string) *pod.Actor {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.actors[uid]
}

func (p *pods) all() map[string]*pod.Actor {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]*pod.Actor, len(p.actors))
	for k, v := range p.actors {
		out[k] = v
	}
	return out
}

// objectChanged wakes the pods that use a ConfigMap or Secret.
func (p *pods) objectChanged(ev client.Event) {
	for _, a := range p.all() {
		if pod, _ := a.Snapshot(); refers(pod, ev.Object) {
			a.ObjectChanged()
		}
	}
}

// orphans ends what the runtime has of pods that the API no longer knows: each is
// given an actor whose pod was deleted while nobody looked.
func (p *pods) orphans(ctx context.Context) {
	left, err := p.deps.Volumes.Pods()
	if err != nil {
		p.deps.Log.Warn("the directories of pods cannot be listed", "error", err)
	}
	known := p.files.uids()
	p.cache.List("", nil, func(o client.Object) bool {
		known[string(o.GetUID())] = true
		return true
	})
	p.forget(known)
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid, v := range p.first {
		if known[uid] || uid == "" {
			continue
		}
		obj := shell(v)
		a := pod.New(p.deps, obj, v)
		a.Deleted(obj)
		p.start(uid, a)
		delete(p.first, uid)
	}
	// Pods that went, or of which nothing was made yet, when the machine stopped.
	for uid := range left {
		if known[uid] || p.first[uid] != nil || p.actors[uid] != nil {
			continue
		}
		p.wg.Go(func() {
			logs, _ := filepath.Glob(podspec.LogDir(p.deps.LogRoot, "*", "*", uid))
			if err := p.deps.Remove(ctx, &view.Pod{}, uid, logs...); err != nil && ctx.Err() == nil {
				p.deps.Log.Warn("what is left of a pod stays until the next start", "uid", uid, "error", err)
			}
		})
	}
}

// forget takes back what was set aside for pods that are neither known nor run.
func (p *pods) forget(known map[string]bool) {
	if p.resources == nil && p.dropClaims == nil {
		return
	}
	keep := maps.Clone(known)
	p.mu.Lock()
	for uid := range p.first {
		keep[uid] = true
	}
	p.mu.Unlock()
	for uid := range p.all() {
		keep[uid] = true
	}
	if p.dropClaims != nil {
		p.wg.Go(func() { p.dropClaims(p.ctx, keep) })
	}
	if p.resources == nil {
		return
	}
	if err := p.resources.Keep(keep); err != nil {
		p.deps.Log.Warn("what was set aside for pods that are gone stays taken until the next start", "error", err)
	}
}

// shell rebuilds the little of a pod that ending it needs, from labels.
func shell(v *view.Pod) *corev1.Pod {
	obj := &corev1.Pod{}
	take := func(l map[string]string) {
		obj.Name, obj.Namespace = l[podspec.LabelPodName], l[podspec.LabelPodNamespace]
		obj.SetUID(types.UID(l[podspec.LabelPodUID]))
	}
	for _, s := range v.Sandboxes {
		take(s.Labels)
	}
	for name, list := range v.Containers {
		for _, c := range list {
			take(c.Labels)
			if g, err := strconv.ParseInt(c.Annotations[podspec.AnnotationPodGracePeriod], 10, 64); err == nil {
				obj.Spec.TerminationGracePeriodSeconds = &g
			}
		}
		obj.Spec.Containers = append(obj.Spec.Containers, corev1.Container{Name: name})
	}
	return obj
}

// follow hands runtime events to actors. After every break of the stream, and
// after its start, everything is listed, because events may have been missed.
func (p *pods) follow(ctx context.Context) error {
	delay := firstReconnect
	for ctx.Err() == nil {
		stream, err := p.deps.CRI.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err == nil {
			settle := p.catchUp()
			for {
				ev, recvErr := stream.Recv()
				if recvErr != nil {
					err = recvErr
					break
				}
				delay = firstReconnect
				p.event(ev)
			}
			settle.Stop()
		}
		if ctx.Err() != nil {
			break
		}
		if unimplemented(err) {
			if err = p.poll(ctx); err != nil && ctx.Err() == nil {
				p.deps.Log.Warn("the container runtime does not answer", "error", err)
			}
		}
		if !p.pause(ctx, delay) {
			break
		}
		delay = min(2*delay, maxReconnect)
	}
	return ctx.Err()
}

// catchUp lists the runtime after a stream was opened: once now and once when the
// runtime has surely begun to send, for the stream does not say when it does.
func (p *pods) catchUp() clock.Timer {
	p.relist()
	return p.deps.Clock.AfterFunc(streamSettles, p.relist)
}

func (p *pods) event(ev *runtimeapi.ContainerEventResponse) {
	uid := ev.GetPodSandboxStatus().GetMetadata().GetUid()
	for _, st := range ev.ContainersStatuses {
		if uid == "" {
			uid = st.Labels[podspec.LabelPodUID]
		}
	}
	if ev.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT {
		select {
		case p.began <- struct{}{}:
		default:
		}
	}
	if a := p.actor(uid); a != nil {
		a.Runtime(ev)
	}
}

func (p *pods) relist() {
	for _, a := range p.all() {
		a.Refresh()
	}
}

// snapshots returns the node's pods as they are shown.
func (p *pods) snapshots() []*corev1.Pod {
	var out []*corev1.Pod
	for _, a := range p.all() {
		pod, _ := a.Snapshot()
		out = append(out, pod)
	}
	return out
}

// changes returns a channel that is closed when the pod's containers change.
func (p *pods) changes(uid string) <-chan struct{} {
	if a := p.actor(uid); a != nil {
		return a.Changed()
	}
	closed := make(chan struct{})
	close(closed)
	return closed
}

// find returns a pod and its containers by name.
func (p *pods) find(namespace, name, uid string) (*corev1.Pod, *view.Pod, bool) {
	for _, a := range p.all() {
		pod, v := a.Snapshot()
		if pod.Namespace == namespace && pod.Name == name && (uid == "" || uid == string(pod.UID)) {
			return pod, v, true
		}
	}
	return nil, nil, false
}
