// Package scheduler gives pods their nodes.
//
// One goroutine owns the queue of waiting pods and the snapshot of the cluster;
// cache events and the results of writes come to it through an inbox. Decisions
// are made by package plan. A decided pod counts in the snapshot at once
// (it is assumed) while its binding is written by another goroutine; a failed
// binding takes it out again.
//
//	pod, node events --inbox--> loop --plan.Schedule--> bind (parallel)
//	                              ^                        |
//	                              +------- failures -------+
//
// A pod that no node takes waits for an event that may help, and then for its
// back-off; nothing polls.
package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/scheduler/plan"
)

// Config is what a scheduler needs.
type Config struct {
	Client   client.Interface
	Recorder client.Recorder
	Clock    clock.WithTicker
	Log      *slog.Logger
	// Name selects the pods by their spec.schedulerName; empty: default-scheduler.
	Name string
	// Seed of the choice between equal nodes.
	Seed uint64
}

// Scheduler is the loop; New makes it and Run runs it once.
type Scheduler struct {
	Config
	snapshot *plan.Snapshot
	queue    *queue
	assumed  map[types.UID]*waiting // bindings under way

	mu    sync.Mutex
	inbox []func()
	wake  chan struct{}

	ctx     context.Context // of Run, for writes that events cause
	writes  sync.WaitGroup
	writers chan struct{}
}

// maxWrites bounds the bindings and status writes under way.
const maxWrites = 64

// New returns a scheduler.
func New(c Config) *Scheduler {
	if c.Name == "" {
		c.Name = corev1.DefaultSchedulerName
	}
	return &Scheduler{
		Config: c, snapshot: plan.New(), queue: newQueue(), assumed: map[types.UID]*waiting{},
		wake: make(chan struct{}, 1), writers: make(chan struct{}, maxWrites),
	}
}

// Run schedules until ctx ends, and waits for the writes under way.
func (s *Scheduler) Run(ctx context.Context) error {
	s.ctx = ctx
	sources := []struct {
		r  client.Resource
		on func(client.Event)
	}{{client.Nodes, s.onNode}, {client.Namespaces, s.onNamespace}, {client.Pods, s.onPod}}
	for _, src := range sources {
		c := s.Client.Cache(src.r, "")
		if err := c.WaitSynced(ctx); err != nil {
			return fmt.Errorf("scheduler: waiting for the cache of %s: %w", src.r.Resource, err)
		}
		defer c.Subscribe(func(ev client.Event) { s.post(func() { src.on(ev) }) })()
	}
	defer s.writes.Wait()
	timer := s.Clock.NewTimer(time.Hour)
	defer timer.Stop()
	timer.Stop()
	for {
		s.drain()
		if w := s.queue.pop(); w != nil {
			s.try(ctx, w)
			continue
		}
		if next := s.queue.release(s.Clock.Now()); next > 0 {
			timer.Reset(next)
		} else if len(s.queue.active) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C():
			s.queue.release(s.Clock.Now())
		}
	}
}

// post hands work to the loop.
func (s *Scheduler) post(fn func()) {
	s.mu.Lock()
	s.inbox = append(s.inbox, fn)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Scheduler) drain() {
	s.mu.Lock()
	work := s.inbox
	s.inbox = nil
	s.mu.Unlock()
	for _, fn := range work {
		fn()
	}
}

// write runs fn beside the loop; it waits only if too many writes are under way.
func (s *Scheduler) write(ctx context.Context, fn func()) {
	select {
	case s.writers <- struct{}{}:
	case <-ctx.Done():
		return
	}
	s.writes.Go(func() {
		defer func() { <-s.writers }()
		fn()
	})
}

// try decides one pod.
func (s *Scheduler) try(ctx context.Context, w *waiting) {
	pod := w.pod
	w.tries++
	node, why := plan.Schedule(pod, s.snapshot, s.Seed)
	if node == "" {
		w.failed, w.ready = true, s.Clock.Now().Add(backoff(w.tries))
		s.tell(ctx, w, corev1.PodReasonUnschedulable, why.Message())
		return
	}
	s.queue.remove(pod.UID)
	s.snapshot.AddPod(pod, node)
	s.assumed[pod.UID] = w
	s.write(ctx, func() { s.bind(ctx, w, node) })
}
