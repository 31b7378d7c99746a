package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"knarr.dev/knarr/agent/eviction"
	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/usage"
)

const (
	// pressureEvery is how often the node looks at what it has left: two small files
	// and one system call.
	pressureEvery = 10 * time.Second
	// evictedGone is how long the next look waits for an evicted pod's containers.
	evictedGone = 30 * time.Second
	// terminationByKubelet is the reason of the condition DisruptionTarget.
	terminationByKubelet = "TerminationByKubelet"
)

// pressure watches what the node has left, and acts when that is little.
type pressure struct {
	a       *Agent
	cfg     eviction.Config
	observe func() eviction.Observation

	mu         sync.Mutex
	conditions map[corev1.NodeConditionType]bool

	// of run's goroutine alone
	state eviction.State
	sent  map[string]bool // pods that were told to go and are still here, by UID
}

// has lists the node's conditions.
func (p *pressure) has() map[corev1.NodeConditionType]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conditions
}

// run looks until ctx ends; after an eviction at once again.
func (p *pressure) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if p.tick(ctx) {
			continue
		}
		t := p.a.cfg.Clock.NewTimer(pressureEvery)
		select {
		case <-t.C():
		case <-ctx.Done():
			t.Stop()
		}
	}
	return ctx.Err()
}

// tick looks once; it reports whether a pod was evicted.
func (p *pressure) tick(ctx context.Context) bool {
	actors := p.a.pods.all()
	maps.DeleteFunc(p.sent, func(uid string, _ bool) bool { return actors[uid] == nil })
	if p.overdrawn(ctx) {
		return true
	}
	short := p.look()
	if short == nil {
		return false
	}
	p.a.cfg.Log.Warn("the node is short of something", "signal", short.Signal, "available", short.Available.String(), "threshold", short.Threshold.String())
	if n := p.a.node.Node(); n != nil {
		p.a.cfg.Recorder.Event(n, corev1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", short.Signal.Resource()))
	}
	if short.Signal.Condition() == corev1.NodeDiskPressure {
		// What nobody uses goes before what somebody does.
		if err := p.a.removeUnusedImages(ctx); err != nil && ctx.Err() == nil {
			p.a.cfg.Log.Warn("images could not be removed", "error", err)
		}
		if short = p.look(); short == nil {
			return false
		}
	}
	actors, pods, used := p.candidates(ctx, short.Signal)
	if len(pods) == 0 {
		p.a.cfg.Log.Warn("the node is short of something and has no pod that may be evicted", "signal", short.Signal)
		return false
	}
	victim := eviction.Rank(short.Signal, pods, used)[0]
	uid := string(victim.UID)
	p.evict(ctx, actors[uid], victim, eviction.Message(short, victim, used[uid]), short.Grace, string(short.Signal))
	return true
}

// look takes one observation in and passes changed conditions on.
func (p *pressure) look() *eviction.Short {
	state, conditions, short := p.state.Next(&p.cfg, p.observe(), p.a.cfg.Clock.Now())
	p.state = state
	p.mu.Lock()
	changed := !maps.Equal(p.conditions, conditions)
	p.conditions = conditions
	p.mu.Unlock()
	if changed {
		p.a.node.Changed()
	}
	return short
}

// candidates are the pods that may be evicted, and what they use.
func (p *pressure) candidates(ctx context.Context, s eviction.Signal) (map[string]*pod.Actor, []*corev1.Pod, map[string]*stats.PodStats) {
	actors := p.a.pods.all()
	var pods []*corev1.Pod
	for _, a := range actors {
		obj, v := a.Snapshot()
		if !p.sent[string(obj.UID)] && !podspec.Critical(obj) && obj.DeletionTimestamp == nil && obj.Status.Phase != corev1.PodSucceeded && obj.Status.Phase != corev1.PodFailed && v.Sandbox() != nil {
			pods = append(pods, obj)
		}
	}
	// In a stable order, whatever that of the map is.
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(string(a.UID), string(b.UID)) })
	used := map[string]*stats.PodStats{}
	sum, err := p.measure(ctx, s.Condition() == corev1.NodeDiskPressure)
	if err != nil {
		p.a.cfg.Log.Warn("what pods use is not known: they are ranked by their requests", "error", err)
		return actors, pods, used
	}
	for i := range sum.Pods {
		used[sum.Pods[i].PodRef.UID] = &sum.Pods[i]
	}
	return actors, pods, used
}

func (p *pressure) measure(ctx context.Context, disk bool) (*stats.Summary, error) {
	if disk {
		return p.a.usage.ReadAll(ctx)
	}
	r, err := p.a.usage.Read(ctx)
	if err != nil {
		return nil, err
	}
	return &r.Summary, nil
}

// overdrawn evicts a pod that exceeds a limit of its own on local storage. Only
// pods with such limits are measured.
func (p *pressure) overdrawn(ctx context.Context) bool {
	actors := p.a.pods.all()
	limited := false
	for _, a := range actors {
		obj, _ := a.Snapshot()
		limited = limited || obj.Status.Phase == corev1.PodRunning && eviction.Limited(obj)
	}
	if !limited {
		return false
	}
	sum, err := p.a.usage.ReadAll(ctx)
	if err != nil {
		return false // the runtime is away, which others tell
	}
	for i := range sum.Pods {
		a := actors[sum.Pods[i].PodRef.UID]
		if a == nil {
			continue
		}
		obj, _ := a.Snapshot()
		if p.sent[string(obj.UID)] || obj.Status.Phase != corev1.PodRunning || obj.DeletionTimestamp != nil {
			continue
		}
		if why := eviction.Overdrawn(obj, &sum.Pods[i]); why != "" {
			now := int64(1)
			p.evict(ctx, a, obj, why, &now, "ephemeral-storage")
			return true
		}
	}
	return false
}

// evict ends a pod and waits until its containers have ended.
func (p *pressure) evict(ctx context.Context, a *pod.Actor, obj *corev1.Pod, why string, grace *int64, signal string) {
	p.a.cfg.Recorder.Event(obj, corev1.EventTypeWarning, "Evicted", why)
	p.a.deps.Metrics.Evicted(signal)
	p.sent[string(obj.UID)] = true
	a.Evict(status.Terminal{Phase: corev1.PodFailed, Reason: "Evicted", Message: why, Disruption: terminationByKubelet, Grace: grace})
	limit := p.a.cfg.Clock.NewTimer(evictedGone)
	defer limit.Stop()
	for {
		changed := a.Changed()
		if _, v := a.Snapshot(); !v.AnyRunning() {
			return
		}
		select {
		case <-changed:
		case <-limit.C():
			return
		case <-ctx.Done():
			return
		}
	}
}

// refuses tells why the node takes no such pod while it is short of something; nil:
// it does. While memory is short alone, pods that ask for some are taken.
func (p *pressure) refuses(obj *corev1.Pod) *status.Terminal {
	conditions := p.has()
	if len(conditions) == 0 || podspec.Critical(obj) {
		return nil
	}
	if len(conditions) == 1 && conditions[corev1.NodeMemoryPressure] {
		if podspec.QOS(obj) != corev1.PodQOSBestEffort || slices.ContainsFunc(obj.Spec.Tolerations, bearsMemoryPressure) {
			return nil
		}
	}
	names := slices.Sorted(maps.Keys(conditions))
	return &status.Terminal{Phase: corev1.PodFailed, Reason: "Evicted", Message: fmt.Sprintf("Pod was rejected: The node had condition: %v. ", names)}
}

// bearsMemoryPressure tells whether a toleration covers the taint of such nodes.
func bearsMemoryPressure(t corev1.Toleration) bool {
	return (t.Effect == "" || t.Effect == corev1.TaintEffectNoSchedule) &&
		(t.Key == corev1.TaintNodeMemoryPressure || t.Key == "" && t.Operator == corev1.TolerationOpExists) &&
		(t.Operator == corev1.TolerationOpExists || t.Value == "")
}

// left observes the machine.
func (p *pressure) left() eviction.Observation {
	now := metav1.NewTime(p.a.cfg.Clock.Now())
	o := eviction.Observation{}
	amount := func(s eviction.Signal, available, capacity *uint64) {
		if available != nil && capacity != nil && *capacity > 0 {
			o[s] = eviction.Amount{Available: int64(*available), Capacity: int64(*capacity)}
		}
	}
	if available, total, ok := usage.Memory(); ok {
		amount(eviction.MemoryAvailable, &available, &total)
	}
	if fs := usage.Disk(p.a.cfg.Root, now); fs != nil {
		amount(eviction.NodeFsAvailable, fs.AvailableBytes, fs.CapacityBytes)
		amount(eviction.NodeFsInodesFree, fs.InodesFree, fs.Inodes)
	}
	// Where images lie on the node's own file system, its thresholds are theirs.
	if fs := usage.Disk(p.a.cfg.ImageRoot, now); fs != nil && !usage.SameDisk(p.a.cfg.Root, p.a.cfg.ImageRoot) {
		amount(eviction.ImageFsAvailable, fs.AvailableBytes, fs.CapacityBytes)
		amount(eviction.ImageFsInodesFree, fs.InodesFree, fs.Inodes)
	}
	if used, limit, ok := usage.Tasks(); ok {
		available := limit - min(used, limit)
		amount(eviction.PIDAvailable, &available, &limit)
	}
	return o
}
