package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/client"
)

var definitions = client.Resource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// allWatches subscribes to every resource, and again whenever a custom resource
// definition changes.
type allWatches struct {
	mu      sync.Mutex
	seen    map[schema.GroupResource]bool
	cancels []func()
	wg      sync.WaitGroup
}

func (a *allWatches) start(ctx context.Context, env *Env, w Watch) error {
	a.seen = map[schema.GroupResource]bool{}
	if err := a.refresh(ctx, env, w); err != nil {
		return err
	}
	wake := make(chan struct{}, 1)
	a.add(env.Cache(definitions).Subscribe(func(client.Event) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}))
	a.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-wake:
				if err := a.refresh(ctx, env, w); err != nil && ctx.Err() == nil {
					env.Log.Warn("looking for new resources failed; they are looked for again with the next definition", "error", err)
				}
			}
		}
	})
	return nil
}

func (a *allWatches) refresh(ctx context.Context, env *Env, w Watch) error {
	infos, err := env.Client.Resources(ctx)
	if err != nil {
		return fmt.Errorf("listing the served resources: %w", err)
	}
	for _, info := range infos {
		gr := info.Resource.GroupResource()
		if !Watchable(info) || a.seen[gr] {
			continue
		}
		a.seen[gr] = true
		if err := env.Cache(info.Resource).WaitSynced(ctx); err != nil {
			return fmt.Errorf("waiting for the cache of %s: %w", gr, err)
		}
		keys := w.Keys
		if w.KeysOf != nil {
			keys = func(env *Env, ev client.Event) []Key { return w.KeysOf(env, info.Resource, ev) }
		}
		a.add(subscribe(env, info.Resource, keys))
	}
	return nil
}

func (a *allWatches) add(cancel func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancels = append(a.cancels, cancel)
}

func (a *allWatches) stop() {
	a.wg.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, cancel := range a.cancels {
		cancel()
	}
}

// Watchable tells whether objects of a resource can be followed. Events are
// left out: they are many, short-lived, and own nothing.
func Watchable(info client.ResourceInfo) bool {
	return info.Resource.Resource != "events" && slices.Contains(info.Verbs, "list") && slices.Contains(info.Verbs, "watch")
}
