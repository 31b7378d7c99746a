package crd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/apiserver/webhook"
)

// Definitions serves what the CustomResourceDefinitions of a registry declare.
type Definitions struct {
	reg  *registry.Registry
	crds *registry.Resource
	call *webhook.Caller
	now  func() time.Time
	log  *slog.Logger

	mu     sync.Mutex
	active map[string]*definition // by the definition's name
	clean  map[string]bool        // definitions whose objects are being deleted
	work   sync.WaitGroup
}

// New returns the definitions of a registry; call reaches conversion webhooks.
func New(reg *registry.Registry, call *webhook.Caller, now func() time.Time, log *slog.Logger) *Definitions {
	return &Definitions{
		reg: reg, crds: reg.Resource(apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")),
		call: call, now: now, log: log, active: map[string]*definition{}, clean: map[string]bool{},
	}
}

// Load serves the definitions that were established before the start. ctx is that
// of the server's life.
func (d *Definitions) Load(ctx context.Context) error {
	for _, crd := range d.all() {
		if apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			if err := d.serve(ctx, crd); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Definitions) all() (out []*apiextensionsv1.CustomResourceDefinition) {
	d.crds.Cache.Snapshot().Ascend("", "", func(i *watchcache.Item) bool {
		out = append(out, i.Object.(*apiextensionsv1.CustomResourceDefinition))
		return true
	})
	return out
}

// retryAfter is how long a definition that could not be served waits.
const retryAfter = time.Second

// Run follows the definitions until ctx ends.
func (d *Definitions) Run(ctx context.Context) error {
	defer d.work.Wait()
	for ctx.Err() == nil {
		_, w := d.crds.Cache.SnapshotAndWatch()
		again := d.sync(ctx, nil)
		for {
			wait, cancel := ctx, context.CancelFunc(func() {})
			if again {
				wait, cancel = context.WithTimeout(ctx, retryAfter)
			}
			events, err := w.Next(wait)
			cancel()
			if err != nil && !(errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil) {
				break // ended, or too slow: look at all again
			}
			groups := map[string]bool{}
			for _, e := range events {
				groups[e.Item.Object.(*apiextensionsv1.CustomResourceDefinition).Spec.Group] = true
			}
			if again {
				groups = nil
			}
			again = d.sync(ctx, groups)
		}
		w.Stop()
	}
	return nil
}

// sync brings what is served in line with the definitions of some groups (nil:
// all). again tells that something failed that may yet succeed.
func (d *Definitions) sync(ctx context.Context, groups map[string]bool) (again bool) {
	byGroup := map[string][]*apiextensionsv1.CustomResourceDefinition{}
	present := map[string]bool{}
	for _, crd := range d.all() {
		present[crd.Name] = true
		byGroup[crd.Spec.Group] = append(byGroup[crd.Spec.Group], crd)
	}
	d.withdraw(present)
	for group, crds := range byGroup {
		if groups != nil && !groups[group] {
			continue
		}
		for i, crd := range crds {
			next, err := d.one(ctx, crd, crds)
			if err != nil {
				again = true
				if ctx.Err() == nil {
					d.log.Warn("custom resource definition not served yet; trying again", "name", crd.Name, "error", err)
				}
			}
			if next != nil {
				crds[i] = next // its names count for those that follow
			}
		}
	}
	return again && ctx.Err() == nil
}

// one brings one definition up to date and returns it as it is then.
func (d *Definitions) one(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition, group []*apiextensionsv1.CustomResourceDefinition) (*apiextensionsv1.CustomResourceDefinition, error) {
	if crd.DeletionTimestamp != nil {
		d.finish(ctx, crd)
		return crd, nil
	}
	var others []*apiextensionsv1.CustomResourceDefinition
	for _, o := range group {
		if o.Name != crd.Name {
			others = append(others, o)
		}
	}
	next := judge(crd, others, metav1.NewTime(d.now()).Rfc3339Copy())
	if apihelpers.IsCRDConditionTrue(next, apiextensionsv1.Established) {
		// Before the condition says so: who sees it may use the kind.
		if err := d.serve(ctx, next); err != nil {
			return nil, err
		}
	}
	if equality.Semantic.DeepEqual(next.Status, crd.Status) {
		return crd, nil
	}
	if err := d.writeStatus(ctx, next); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("write the status of definition %s: %w", crd.Name, err)
	}
	return next, nil // after a conflict, its event brings it again
}

func (d *Definitions) writeStatus(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	q := registry.Request{Resource: d.crds, Name: crd.Name, Subresource: "status"}
	_, _, err := d.reg.Update(ctx, q, crd.DeepCopy())
	return err
}

// serve has the registry serve an established definition as it is now.
func (d *Definitions) serve(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.active[crd.Name]
	if old != nil && equality.Semantic.DeepEqual(old.crd.Spec, crd.Spec) && equality.Semantic.DeepEqual(old.crd.Status.AcceptedNames, crd.Status.AcceptedNames) && old.crd.UID == crd.UID {
		return nil
	}
	next := newDefinition(ctx, crd, d.call)
	next.ending.Store(crd.DeletionTimestamp != nil)
	if next.storage == nil {
		return fmt.Errorf("definition %s: no version is the stored one: set storage: true for one of spec.versions", crd.Name)
	}
	if err := d.reg.Serve(ctx, next.storage.kind, next.served()); err != nil {
		return err
	}
	d.active[crd.Name] = next
	return nil
}

// withdraw ends the service of definitions that are gone.
func (d *Definitions) withdraw(present map[string]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, def := range d.active {
		if !present[name] {
			d.reg.Withdraw(def.storage.kind)
			delete(d.active, name)
		}
	}
}
