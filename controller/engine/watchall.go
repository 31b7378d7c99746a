package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"knarr.dev/knarr/client"
)

// What declares further resources.
var (
	definitions = client.Resource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	services    = client.Resource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
)

// extensionWait is for how long the first state of an extension server's resource
// is waited for: what it has comes as events later.
const extensionWait = 5 * time.Second

// allWatches subscribes to every resource, and again whenever a custom resource
// definition or an APIService changes.
type allWatches struct {
	mu      sync.Mutex
	seen    map[schema.GroupResource]bool
	far     map[schema.GroupVersionResource]func() // ends the watch of an extension server's resource
	cancels []func()
	wg      sync.WaitGroup
}

func (a *allWatches) start(ctx context.Context, env *Env, w Watch) error {
	a.seen, a.far = map[schema.GroupResource]bool{}, map[schema.GroupVersionResource]func(){}
	if err := a.refresh(ctx, env, w); err != nil {
		return err
	}
	wake := make(chan struct{}, 1)
	for _, r := range []client.Resource{definitions, services} {
		a.add(env.Cache(r).Subscribe(func(client.Event) {
			select {
			case wake <- struct{}{}:
			default:
			}
		}))
	}
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
	silent, partial := discovery.GroupDiscoveryFailedErrorGroups(err)
	if err != nil && !partial {
		return fmt.Errorf("listing the served resources: %w", err)
	}
	a.forget(env, infos, silent)
	for _, info := range infos {
		gr := info.Resource.GroupResource()
		if !Watchable(info) || a.seen[gr] {
			continue
		}
		keys := w.Keys
		if w.KeysOf != nil {
			keys = func(env *Env, ev client.Event) []Key { return w.KeysOf(env, info.Resource, ev) }
		}
		a.seen[gr] = true
		if err := env.WaitSynced(ctx, info); err != nil && !info.Extension {
			return err
		}
		cancel := subscribe(env, info.Resource, keys)
		if info.Extension {
			a.far[info.Resource] = cancel
		} else {
			a.add(cancel)
		}
	}
	return nil
}

// forget ends the watches of what extension servers no longer serve. One that does
// not answer now still does.
func (a *allWatches) forget(env *Env, infos []client.ResourceInfo, silent map[schema.GroupVersion]error) {
	for r, cancel := range a.far {
		_, is := silent[r.GroupVersion()]
		if is || slices.ContainsFunc(infos, func(i client.ResourceInfo) bool { return i.Resource == r }) {
			continue
		}
		cancel()
		delete(a.far, r)
		delete(a.seen, r.GroupResource())
		env.forget(r)
	}
}

// WaitSynced waits for the cache of a resource; for that of an extension server,
// which may not answer, for a few seconds only.
func (e *Env) WaitSynced(ctx context.Context, info client.ResourceInfo) error {
	if info.Extension {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, extensionWait)
		defer cancel()
	}
	if err := e.Cache(info.Resource).WaitSynced(ctx); err != nil {
		return fmt.Errorf("waiting for the cache of %s: %w", info.Resource.GroupResource(), err)
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
	for _, cancel := range a.far {
		cancel()
	}
	for _, cancel := range a.cancels {
		cancel()
	}
}

// Watchable tells whether objects of a resource can be followed. Events are
// left out: they are many, short-lived, and own nothing.
func Watchable(info client.ResourceInfo) bool {
	return info.Resource.Resource != "events" && slices.Contains(info.Verbs, "list") && slices.Contains(info.Verbs, "watch")
}
