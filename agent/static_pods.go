package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/agent/logs"
	"knarr.dev/knarr/agent/node"
	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/static"
	"knarr.dev/knarr/client"
)

// Static pods come from files; a mirror in the API shows each. The files alone say
// what runs: a mirror that somebody deletes is made again, and that of a changed file
// is replaced.
//
//	files ──inotify──> statics ──> pods (actors)
//	API (mirrors) ───────┘  └────> API (mirrors)
type statics struct {
	path string
	pods *pods
	node *node.Reporter
	wake chan struct{}

	mu      sync.Mutex
	wanted  map[string]*corev1.Pod // by namespace/name
	mirrors map[string]*corev1.Pod // the node's mirrors that the API has
}

const (
	// filesEvery is how often files are looked at where no event can come from, such
	// as a folder that does not exist yet.
	filesEvery = 20 * time.Second
	// mirrorRetry is how long a failed write of a mirror waits.
	mirrorRetry = time.Second
)

func newStatics(path string, p *pods, n *node.Reporter) *statics {
	return &statics{path: path, pods: p, node: n, wake: make(chan struct{}, 1), wanted: map[string]*corev1.Pod{}, mirrors: map[string]*corev1.Pod{}}
}

func fullName(o client.Object) string { return o.GetNamespace() + "/" + o.GetName() }

// load reads the files. It is called once before anything runs, so that what the
// runtime has of static pods is not taken for orphaned.
func (s *statics) load() {
	if s.path == "" {
		return
	}
	list, err := static.Load(s.path, s.pods.node, s.pods.deps.Clock.Now())
	if err != nil {
		s.pods.deps.Log.Warn("some static pods cannot be run: mend their files", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.wanted
	s.wanted = map[string]*corev1.Pod{}
	for _, p := range list {
		if old := before[fullName(p)]; old != nil && old.UID == p.UID {
			p = old
		}
		s.wanted[fullName(p)] = p
	}
}

// run follows the files and the mirrors until ctx ends.
func (s *statics) run(ctx context.Context) {
	if s.path == "" {
		s.sweep(ctx)
		return
	}
	var w logs.Watcher
	for ctx.Err() == nil {
		dir := s.path
		if info, err := os.Stat(dir); err == nil && !info.IsDir() {
			dir = filepath.Dir(dir)
		}
		changes, cancel, err := w.Watch(dir)
		if err != nil {
			changes, cancel = nil, func() {}
		}
		s.load()
		s.apply(ctx)
		s.follow(ctx, changes)
		cancel()
	}
}

// follow applies changes; without events of the files it returns after a while.
func (s *statics) follow(ctx context.Context, changes <-chan struct{}) {
	for {
		var late <-chan time.Time
		if changes == nil {
			t := s.pods.deps.Clock.NewTimer(filesEvery)
			defer t.Stop()
			late = t.C()
		}
		select {
		case <-changes:
			s.load()
		case <-s.wake:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
		s.apply(ctx)
		if _, err := os.Stat(s.path); changes != nil && errors.Is(err, os.ErrNotExist) {
			return // the folder was removed, its watch with it
		}
	}
}

// sweep deletes the mirrors of a node that has no static pods any more.
func (s *statics) sweep(ctx context.Context) {
	for {
		s.apply(ctx)
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// mirrored takes over what the API has; it reports whether the pod is a mirror.
func (s *statics) mirrored(ev client.Event, p *corev1.Pod) bool {
	if !podspec.IsMirror(p) {
		return false
	}
	s.mu.Lock()
	if ev.Type == client.Deleted {
		if have := s.mirrors[fullName(p)]; have != nil && have.UID == p.UID {
			delete(s.mirrors, fullName(p))
		}
	} else {
		s.mirrors[fullName(p)] = p
	}
	s.mu.Unlock()
	s.kick()
	return true
}

// kick has run look again: a mirror changed, or a pod's predecessor is gone.
func (s *statics) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// uids are those of the pods in the files.
func (s *statics) uids() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]bool{}
	for _, p := range s.wanted {
		out[string(p.UID)] = true
	}
	return out
}

// apply starts and ends actors and mirrors as the files want it.
func (s *statics) apply(ctx context.Context) {
	s.mu.Lock()
	wanted := make(map[string]*corev1.Pod, len(s.wanted))
	for k, p := range s.wanted {
		wanted[k] = p
	}
	mirrors := make(map[string]*corev1.Pod, len(s.mirrors))
	for k, p := range s.mirrors {
		mirrors[k] = p
	}
	s.mu.Unlock()
	s.pods.setStatic(wanted)
	failed := false
	for name, m := range mirrors {
		p := wanted[name]
		if p != nil && static.Shows(m, p) {
			if a := s.pods.actor(string(p.UID)); a != nil {
				a.Mirror(m)
			}
			continue
		}
		zero := int64(0)
		err := s.pods.deps.Client.Delete(ctx, client.Key{Resource: client.Pods, Namespace: m.Namespace, Name: m.Name},
			metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &m.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			failed = true
			s.warn(ctx, "the mirror of a static pod could not be deleted", m, err)
		}
	}
	n := s.node.Node()
	for name, p := range wanted {
		if mirrors[name] != nil {
			continue // there, or about to go: its deletion wakes us
		}
		if a := s.pods.actor(string(p.UID)); a != nil {
			a.Mirror(nil)
		}
		if n == nil {
			failed = true // its owner is not there yet
			continue
		}
		_, err := s.pods.deps.Client.Create(ctx, client.Key{Resource: client.Pods, Namespace: p.Namespace}, static.Mirror(p, n))
		if err != nil && !apierrors.IsAlreadyExists(err) {
			failed = true
			s.warn(ctx, "a static pod runs but cannot be shown in the API", p, err)
		}
	}
	if failed && ctx.Err() == nil {
		s.pods.deps.Clock.AfterFunc(mirrorRetry, s.kick)
	}
}

func (s *statics) warn(ctx context.Context, what string, p *corev1.Pod, err error) {
	if ctx.Err() == nil {
		s.pods.deps.Log.Warn(what, "pod", fullName(p), "error", err)
	}
}

// setStatic gives the static pods that are wanted actors and ends the others. A pod
// waits until its predecessor of the same name, whose file was changed, is gone.
func (p *pods) setStatic(wanted map[string]*corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return
	}
	busy := map[string]bool{}
	for uid, a := range p.actors {
		obj, _ := a.Snapshot()
		if !podspec.IsStatic(obj) {
			continue
		}
		busy[fullName(obj)] = true
		if w := wanted[fullName(obj)]; w == nil || string(w.UID) != uid {
			a.Deleted(obj)
		}
	}
	for name, obj := range wanted {
		if busy[name] {
			continue
		}
		uid := string(obj.UID)
		a := pod.New(p.deps, obj, p.first[uid])
		delete(p.first, uid)
		p.start(uid, a)
	}
}
