// Package engine runs controllers.
//
// A controller is a value: what it watches, what it writes and a function that
// makes the world agree with one object. The engine waits for the caches, turns
// events into keys, keeps one rate-limited queue for each controller, and calls
// Reconcile for one key at a time, never twice at once for the same key.
//
//	cache events --Watch.Keys--> queue --worker--> Reconcile(key) --> client
//	                              ^                    |
//	                              +---- back-off ------+  error or panic
//	                              +---- timer ---------+  requeueAfter > 0
//
// Reconcile is level-triggered: it reads the present state from the caches and
// never relies on which event woke it.
package engine

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
)

// Key names what is reconciled, mostly an object of the controller's kind.
type Key = types.NamespacedName

// Controller declares one control loop.
type Controller struct {
	// Name is lower case with dashes, as in Kubernetes ("replicaset-controller").
	Name string
	// Watches are the sources of keys.
	Watches []Watch
	// Writes are the only resources that the controller's client may change.
	Writes []Write
	// Workers is how many keys are reconciled at the same time; 0 means 1.
	Workers int
	// New prepares the loop for one run and returns its reconcile function.
	New func(env *Env) Reconcile
}

// Reconcile makes the world agree with the object that key names. A positive
// requeueAfter asks to be called again then; an error asks for a retry with
// back-off.
type Reconcile func(ctx context.Context, key Key) (requeueAfter time.Duration, err error)

// Watch is a source of keys.
type Watch struct {
	// Resource is watched; ignored if All is set.
	Resource client.Resource
	// All watches every resource that the server can list and watch, also those
	// that custom resource definitions add later.
	All bool
	// Keys tells which keys an event concerns. It is called for one event at a
	// time of each resource and must not block. Nil: the resource is only read.
	Keys func(env *Env, ev client.Event) []Key
	// KeysOf is Keys for watches of all resources that must know which it is.
	KeysOf func(env *Env, r client.Resource, ev client.Event) []Key
}

// Env is what a controller may use during one run.
type Env struct {
	Client   client.Interface
	Recorder client.Recorder
	Clock    clock.WithTicker
	Log      *slog.Logger
	// Ledger remembers writes that a lagging cache does not show yet.
	Ledger *Ledger

	queue workqueue.TypedRateLimitingInterface[Key]
	mu    sync.Mutex
	cache map[client.Resource]client.Cache
}

// Cache returns the shared cache of a resource.
func (e *Env) Cache(r client.Resource) client.Cache {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, ok := e.cache[r]
	if !ok {
		c = e.Client.Cache(r, "")
		e.cache[r] = c
	}
	return c
}

// forget has Cache ask for a resource's cache anew.
func (e *Env) forget(r client.Resource) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.cache, r)
}

// Enqueue asks for a reconcile of keys now.
func (e *Env) Enqueue(keys ...Key) {
	for _, k := range keys {
		e.queue.Add(k)
	}
}

// EnqueueAfter asks for a reconcile of key after d.
func (e *Env) EnqueueAfter(key Key, d time.Duration) { e.queue.AddAfter(key, d) }

// Back-off of a failing key.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 60 * time.Second
)

// Run runs the controllers until ctx ends and waits for all of their goroutines.
func Run(ctx context.Context, c client.Interface, rec client.Recorder, clk clock.WithTicker, log *slog.Logger, controllers []Controller) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range controllers {
		ctl := &controllers[i]
		g.Go(func() error {
			if err := run(ctx, c, rec, clk, log.With("controller", ctl.Name), ctl); err != nil && ctx.Err() == nil {
				return fmt.Errorf("controller %s: %w", ctl.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func run(ctx context.Context, c client.Interface, rec client.Recorder, clk clock.WithTicker, log *slog.Logger, ctl *Controller) error {
	env := &Env{
		Client: guard{c, ctl}, Recorder: rec, Clock: clk, Log: log, Ledger: newLedger(clk),
		cache: map[client.Resource]client.Cache{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[Key](firstRetry, lastRetry),
			workqueue.TypedRateLimitingQueueConfig[Key]{Clock: clk}),
	}
	reconcile := ctl.New(env)
	for _, w := range ctl.Watches {
		if !w.All {
			if err := env.Cache(w.Resource).WaitSynced(ctx); err != nil {
				return fmt.Errorf("waiting for the cache of %s: %w", w.Resource.Resource, err)
			}
		}
	}
	var all allWatches
	defer all.stop()
	for _, w := range ctl.Watches {
		if w.All {
			if err := all.start(ctx, env, w); err != nil {
				return err
			}
			continue
		}
		if w.Keys == nil {
			continue
		}
		defer subscribe(env, w.Resource, w.Keys)()
	}
	var workers sync.WaitGroup
	for range max(1, ctl.Workers) {
		workers.Go(func() {
			for env.work(ctx, reconcile) {
			}
		})
	}
	<-ctx.Done()
	env.queue.ShutDown()
	workers.Wait()
	return nil
}

// subscribe feeds a resource's events into the queue. A panic while mapping one
// event costs that event only.
func subscribe(env *Env, r client.Resource, keys func(*Env, client.Event) []Key) (cancel func()) {
	return env.Cache(r).Subscribe(func(ev client.Event) {
		defer func() {
			if p := recover(); p != nil {
				env.Log.Error("panic while mapping an event", "resource", r.Resource,
					"object", ev.Object.GetNamespace()+"/"+ev.Object.GetName(), "panic", p, "stack", string(debug.Stack()))
			}
		}()
		env.Ledger.observe(ev)
		env.Enqueue(keys(env, ev)...)
	})
}

// work reconciles the next key; false means the queue has ended.
func (e *Env) work(ctx context.Context, reconcile Reconcile) bool {
	key, shutdown := e.queue.Get()
	if shutdown {
		return false
	}
	defer e.queue.Done(key)
	if ctx.Err() != nil {
		return true
	}
	after, err := protect(ctx, reconcile, key)
	switch {
	case err == nil:
		e.queue.Forget(key)
		if after > 0 {
			e.queue.AddAfter(key, after)
		}
	case ctx.Err() != nil:
	default:
		level := slog.LevelWarn
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) {
			level = slog.LevelDebug // somebody else was faster: the next try sees it
		}
		e.Log.Log(ctx, level, "reconcile failed, will retry", "key", key.String(), "tries", e.queue.NumRequeues(key)+1, "error", err)
		e.queue.AddRateLimited(key)
	}
	return true
}

// protect turns a panic of one key into an error of that key.
func protect(ctx context.Context, reconcile Reconcile, key Key) (after time.Duration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return reconcile(ctx, key)
}
