package flow

import (
	"context"
	"fmt"
	"strconv"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Run keeps the mandatory and suggested objects, as Kubernetes does, and says of
// each FlowSchema whether its level exists, until ctx ends.
//
// Mandatory objects always have their given spec. Suggested ones are made when
// they are missing and brought up to date unless their annotation
// apf.kubernetes.io/autoupdate-spec says false.
func (c *Controller) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := c.follow(ctx); err != nil {
			return err
		}
	}
	return nil
}

// follow looks at everything after each change; it returns when a watch has ended.
func (c *Controller) follow(ctx context.Context) error {
	_, schemas := c.schemas.Cache.SnapshotAndWatch()
	defer schemas.Stop()
	_, levels := c.levels.Cache.SnapshotAndWatch()
	defer levels.Stop()
	for {
		if err := c.keep(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("keep the objects of flow control; it is tried again with the next change", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-schemas.Ready():
		case <-levels.Ready():
		}
		for _, w := range []*watchcache.Watcher{schemas, levels} {
			if _, err := w.Poll(); err != nil {
				return nil // too slow, or ended: begin again
			}
		}
	}
}

func (c *Controller) keep(ctx context.Context) error {
	for _, l := range bootstrap.MandatoryPriorityLevelConfigurations {
		if err := c.ensure(ctx, c.levels, l, true); err != nil {
			return err
		}
	}
	for _, l := range bootstrap.SuggestedPriorityLevelConfigurations {
		if err := c.ensure(ctx, c.levels, l, false); err != nil {
			return err
		}
	}
	for _, s := range bootstrap.MandatoryFlowSchemas {
		if err := c.ensure(ctx, c.schemas, s, true); err != nil {
			return err
		}
	}
	for _, s := range bootstrap.SuggestedFlowSchemas {
		if err := c.ensure(ctx, c.schemas, s, false); err != nil {
			return err
		}
	}
	var err error
	c.schemas.Cache.Snapshot().Ascend("", "", func(i *watchcache.Item) bool {
		err = c.judge(ctx, i.Object.(*flowcontrolv1.FlowSchema))
		return err == nil
	})
	return err
}

func (c *Controller) request(res *registry.Resource, name, sub string) registry.Request {
	return registry.Request{User: auth.Component("system:apiserver", auth.GroupMasters), Resource: res, Name: name, Subresource: sub}
}

// ensure makes an object, or gives it its spec again.
func (c *Controller) ensure(ctx context.Context, res *registry.Resource, want kind.Object, mandatory bool) error {
	name := want.GetName()
	it := res.Cache.Get(name)
	if it == nil {
		obj := want.DeepCopyObject().(kind.Object)
		obj.GetObjectKind().SetGroupVersionKind(res.GVK())
		_, err := c.cfg.Registry.Create(ctx, c.request(res, name, ""), obj)
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make %s %s: %w", res.Kind.Kind, name, err)
		}
		return nil
	}
	if !mandatory && !follows(it.Object) || sameSpec(it.Object, want) {
		return nil
	}
	next := it.Object.DeepCopyObject().(kind.Object)
	switch n := next.(type) {
	case *flowcontrolv1.FlowSchema:
		n.Spec = *want.(*flowcontrolv1.FlowSchema).Spec.DeepCopy()
	case *flowcontrolv1.PriorityLevelConfiguration:
		n.Spec = *want.(*flowcontrolv1.PriorityLevelConfiguration).Spec.DeepCopy()
	}
	_, _, err := c.cfg.Registry.Update(ctx, c.request(res, name, ""), next)
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update %s %s: %w", res.Kind.Kind, name, err)
	}
	return nil
}

// follows tells whether a suggested object is kept up to date: as it says, or
// else as long as nobody has changed its spec.
func follows(o kind.Object) bool {
	if yes, err := strconv.ParseBool(o.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey]); err == nil {
		return yes
	}
	return o.GetGeneration() == 1
}

func sameSpec(have, want kind.Object) bool {
	switch h := have.(type) {
	case *flowcontrolv1.FlowSchema:
		return equality.Semantic.DeepEqual(h.Spec, want.(*flowcontrolv1.FlowSchema).Spec)
	case *flowcontrolv1.PriorityLevelConfiguration:
		w := want.(*flowcontrolv1.PriorityLevelConfiguration)
		if w.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt { // how much it lends may be changed
			return h.Spec.Type == w.Spec.Type
		}
		return equality.Semantic.DeepEqual(h.Spec, w.Spec)
	}
	return true
}

// judge writes the condition Dangling, if it is news.
func (c *Controller) judge(ctx context.Context, s *flowcontrolv1.FlowSchema) error {
	level := s.Spec.PriorityLevelConfiguration.Name
	want := flowcontrolv1.FlowSchemaCondition{Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, Reason: "Found",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", level)}
	if c.levels.Cache.Get(level) == nil {
		want.Status, want.Reason = flowcontrolv1.ConditionTrue, "NotFound"
		want.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", level)
	}
	want.LastTransitionTime = metav1.NewTime(c.cfg.Now()).Rfc3339Copy()
	next := s.DeepCopy()
	at := -1
	for i := range next.Status.Conditions {
		if next.Status.Conditions[i].Type == want.Type {
			at = i
		}
	}
	if at < 0 {
		next.Status.Conditions = append(next.Status.Conditions, want)
	} else {
		have := next.Status.Conditions[at]
		if have.Status == want.Status && have.Message == want.Message {
			return nil
		}
		next.Status.Conditions[at] = want
	}
	_, _, err := c.cfg.Registry.Update(ctx, c.request(c.schemas, s.Name, "status"), next)
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of FlowSchema %s: %w", s.Name, err)
	}
	return nil
}
