package crd

import (
	"context"
	"fmt"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

// finish deletes the objects of a definition that is being deleted, waits until
// their own finalizers have let them go, and then lets the definition go.
func (d *Definitions) finish(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) {
	if !slices.Contains(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.clean[crd.Name] {
		return
	}
	def := d.active[crd.Name]
	if def != nil {
		def.ending.Store(true)
	}
	d.clean[crd.Name] = true
	d.work.Go(func() {
		defer func() {
			d.mu.Lock()
			delete(d.clean, crd.Name)
			d.mu.Unlock()
		}()
		for ctx.Err() == nil {
			err := d.empty(ctx, crd.Name, def)
			if err == nil {
				return
			}
			d.log.Warn("the objects of a custom resource definition that is being deleted are still there; trying again", "name", crd.Name, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
	})
}

func (d *Definitions) empty(ctx context.Context, name string, def *definition) error {
	terminating := func(status apiextensionsv1.ConditionStatus, reason, message string) error {
		return d.change(ctx, name, "status", func(c *apiextensionsv1.CustomResourceDefinition) {
			setCondition(c, condition(apiextensionsv1.Terminating, status, reason, message), metav1.NewTime(d.now()).Rfc3339Copy())
		})
	}
	if def != nil {
		if err := terminating(apiextensionsv1.ConditionTrue, "InstanceDeletionInProgress", "CustomResource deletion is in progress"); err != nil {
			return err
		}
		if err := d.deleteAll(ctx, def); err != nil {
			reason := terminating(apiextensionsv1.ConditionTrue, "InstanceDeletionFailed", fmt.Sprintf("could not delete instances: %v", err))
			if reason != nil {
				return reason
			}
			return err
		}
		if err := terminating(apiextensionsv1.ConditionFalse, "InstanceDeletionCompleted", "removed all instances"); err != nil {
			return err
		}
	}
	return d.change(ctx, name, "", func(c *apiextensionsv1.CustomResourceDefinition) {
		c.Finalizers = slices.DeleteFunc(c.Finalizers, func(f string) bool { return f == apiextensionsv1.CustomResourceCleanupFinalizer })
	})
}

// deleteAll asks for the deletion of every object and waits until none is left.
func (d *Definitions) deleteAll(ctx context.Context, def *definition) error {
	res := d.reg.Resource(def.storage.kind.GVR())
	for _, v := range def.versions { // the stored version need not be served
		if res == nil {
			res = d.reg.Resource(v.kind.GVR())
		}
	}
	if res == nil {
		return nil
	}
	_, w := res.Cache.SnapshotAndWatch()
	defer w.Stop()
	for {
		// Again after each change: a request that was under way when the deletion
		// began may have made an object since.
		var left []*watchcache.Item
		res.Cache.Snapshot().Ascend("", "", func(i *watchcache.Item) bool { left = append(left, i); return true })
		if len(left) == 0 {
			return nil
		}
		for _, it := range left {
			if it.Object.GetDeletionTimestamp() != nil {
				continue
			}
			q := registry.Request{Resource: res, Namespace: it.Object.GetNamespace(), Name: it.Object.GetName()}
			if _, _, err := d.reg.Delete(ctx, q, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete %s %s: %w", res.GroupResource(), it.Key, err)
			}
		}
		if _, err := w.Next(ctx); err != nil {
			return err
		}
	}
}

// change writes a change of the newest state of a definition.
func (d *Definitions) change(ctx context.Context, name, subresource string, fn func(*apiextensionsv1.CustomResourceDefinition)) error {
	for {
		it := d.crds.Cache.Get(name)
		if it == nil {
			return nil
		}
		next := it.Object.(*apiextensionsv1.CustomResourceDefinition).DeepCopy()
		fn(next)
		_, _, err := d.reg.Update(ctx, registry.Request{Resource: d.crds, Name: name, Subresource: subresource}, next)
		switch {
		case apierrors.IsConflict(err) && ctx.Err() == nil:
			continue // another writer was faster; the cache has it by now
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("change definition %s: %w", name, err)
		}
		return nil
	}
}
