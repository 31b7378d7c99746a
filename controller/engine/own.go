package engine

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
)

// Owning describes who claims objects by selector and controller reference.
type Owning struct {
	Owner    client.Object
	Kind     schema.GroupVersionKind
	Key      client.Key // of the owner, to read it live before adopting
	Selector labels.Selector
	// Of is the resource of the claimed objects.
	Of client.Resource
	// Adoptable may refuse an orphan that matches; nil: all are taken.
	Adoptable func(client.Object) bool
}

// Claim returns those of objs that belong to the owner. Orphans that match are
// adopted, owned objects that match no longer are released.
func Claim[T client.Object](ctx context.Context, c client.Interface, o Owning, objs []T) ([]T, error) {
	var mine []T
	var live error
	checked := false
	for _, obj := range objs {
		ref := metav1.GetControllerOfNoCopy(obj)
		matches := !o.Selector.Empty() && o.Selector.Matches(labels.Set(obj.GetLabels()))
		switch {
		case ref != nil && ref.UID != o.Owner.GetUID():
		case ref != nil && matches:
			mine = append(mine, obj)
		case ref != nil:
			if o.Owner.GetDeletionTimestamp() != nil {
				continue
			}
			if err := o.release(ctx, c, obj); err != nil {
				return nil, err
			}
		case matches && o.Owner.GetDeletionTimestamp() == nil && obj.GetDeletionTimestamp() == nil && (o.Adoptable == nil || o.Adoptable(obj)):
			if !checked {
				checked, live = true, o.checkLive(ctx, c)
			}
			if live != nil {
				return nil, live
			}
			got, err := o.adopt(ctx, c, obj)
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if t, ok := got.(T); ok {
				mine = append(mine, t)
			}
		}
	}
	return mine, nil
}

// Ref is the controller reference that marks an owned object.
func (o Owning) Ref() metav1.OwnerReference { return *metav1.NewControllerRef(o.Owner, o.Kind) }

func (o Owning) checkLive(ctx context.Context, c client.Interface) error {
	live, err := c.Get(ctx, o.Key)
	if err != nil {
		return fmt.Errorf("reading %s before adopting: %w", o.Key, err)
	}
	if live.GetUID() != o.Owner.GetUID() {
		return fmt.Errorf("original %s is gone: got uid %s, wanted %s", o.Key, live.GetUID(), o.Owner.GetUID())
	}
	if live.GetDeletionTimestamp() != nil {
		return fmt.Errorf("%s has just been deleted at %s", o.Key, live.GetDeletionTimestamp())
	}
	return nil
}

func (o Owning) adopt(ctx context.Context, c client.Interface, obj client.Object) (client.Object, error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": obj.GetUID(), "ownerReferences": []metav1.OwnerReference{o.Ref()}}})
	if err != nil {
		return nil, err
	}
	k := client.Key{Resource: o.Of, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	got, err := c.Patch(ctx, k, client.Patch{Type: types.StrategicMergePatchType, Data: patch})
	if err != nil {
		return nil, fmt.Errorf("adopting %s: %w", k, err)
	}
	return got, nil
}

func (o Owning) release(ctx context.Context, c client.Interface, obj client.Object) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":             obj.GetUID(),
		"ownerReferences": []map[string]any{{"$patch": "delete", "uid": o.Owner.GetUID()}}}})
	if err != nil {
		return err
	}
	k := client.Key{Resource: o.Of, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	_, err = c.Patch(ctx, k, client.Patch{Type: types.StrategicMergePatchType, Data: patch})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) {
		return fmt.Errorf("releasing %s: %w", k, err)
	}
	return nil
}
