// Package storagemigration carries out StorageVersionMigrations: it writes every object
// of a resource as it is, which stores it in the form of today, and then has a
// CustomResourceDefinition list only the version in which all of its objects are now.
//
// See https://kubernetes.io/docs/tasks/manage-kubernetes-objects/storage-version-migration/
package storagemigration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	storagemigrationv1beta1 "k8s.io/api/storagemigration/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

var migrations = client.Resource{Group: storagemigrationv1beta1.GroupName, Version: "v1beta1", Resource: "storageversionmigrations"}

// How long a migration waits before it looks again: for a resource that is not served,
// and for servers to store it in the version that its definition asks for.
const (
	absent   = 30 * time.Second
	outdated = 100 * time.Millisecond
)

// New declares the controller. Keys are migrations.
func New() engine.Controller {
	return engine.Controller{
		Name:    "storage-version-migrator-controller",
		Watches: []engine.Watch{{Resource: migrations, Keys: engine.Self}},
		Writes: []engine.Write{
			{Verbs: []string{"patch"}},
			{Resource: migrations, Subresource: "status", Verbs: []string{"update"}},
			{Resource: definitions, Subresource: "status", Verbs: []string{"update"}},
		},
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) {
				m, ok := client.Cached[*storagemigrationv1beta1.StorageVersionMigration](env.Cache(migrations), "", key.Name)
				if !ok || has(m, storagemigrationv1beta1.MigrationSucceeded) || has(m, storagemigrationv1beta1.MigrationFailed) {
					return 0, nil
				}
				return (&migration{env: env, m: m.DeepCopy()}).run(ctx)
			}
		},
	}
}

func has(m *storagemigrationv1beta1.StorageVersionMigration, t storagemigrationv1beta1.MigrationConditionType) bool {
	return meta.IsStatusConditionTrue(m.Status.Conditions, string(t))
}

// migration is one attempt.
type migration struct {
	env *engine.Env
	m   *storagemigrationv1beta1.StorageVersionMigration
}

// failure is why a migration cannot succeed.
type failure struct{ error }

func (m *migration) run(ctx context.Context) (time.Duration, error) {
	d, err := m.definition(ctx)
	if err != nil {
		return 0, err
	}
	resource, err := m.resource(ctx)
	switch {
	case err != nil:
		return 0, m.ended(ctx, nil, err)
	case resource == nil:
		at := m.env.Clock.Now().Add(absent).UTC().Format(time.RFC3339)
		return absent, m.running(ctx, fmt.Sprintf("%s is not served: the migration waits for it, and looks again at %s", schema.GroupResource(m.m.Spec.Resource), at))
	case !d.inForce(resource):
		return outdated, nil
	}
	if m.m.Status.ResourceVersion == "" {
		m.m.Status.ResourceVersion = m.m.ResourceVersion // of all resources
	}
	if err := m.running(ctx, "The migration is running"); err != nil {
		return 0, err
	}
	if err := d.begin(ctx); err != nil {
		return 0, err
	}
	return 0, m.ended(ctx, d, m.write(ctx, resource.Resource))
}

// resource finds what is to be migrated; nil: it is not served.
func (m *migration) resource(ctx context.Context) (*client.ResourceInfo, error) {
	infos, err := m.env.Client.Resources(ctx)
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("listing the served resources: %w", err)
	}
	want := schema.GroupResource(m.m.Spec.Resource)
	i := slices.IndexFunc(infos, func(info client.ResourceInfo) bool { return info.Resource.GroupResource() == want })
	if i < 0 {
		return nil, nil
	}
	verbs := []string{"update", "patch", "list"}
	switch r := infos[i].Resource; {
	case slices.ContainsFunc(verbs, func(v string) bool { return !slices.Contains(infos[i].Verbs, v) }):
		return nil, failure{fmt.Errorf("resource %q does not support discovery operations: %v", r, verbs)}
	case infos[i].Extension:
		return nil, failure{fmt.Errorf("resource %q is served and stored by an extension API server: migrate it there", r)}
	}
	return &infos[i], nil
}

// write writes all objects that there are.
func (m *migration) write(ctx context.Context, r client.Resource) error {
	c := m.env.Client.Cache(r, "")
	if err := c.WaitSynced(ctx); err != nil {
		return fmt.Errorf("waiting for the cache of %s: %w", r.Resource, err)
	}
	var all []client.Object
	c.List("", nil, func(o client.Object) bool { all = append(all, o); return true })
	_, err := engine.Parallel(len(all), func(i int) error { return m.touch(ctx, r, all[i]) })
	return err
}

// touch writes an object as it is. One that was written by somebody else meanwhile
// needs it no longer.
func (m *migration) touch(ctx context.Context, r client.Resource, o client.Object) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": o.GetUID(), "resourceVersion": o.GetResourceVersion()}})
	if err != nil {
		return err
	}
	k := client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}
	_, err = m.env.Client.Patch(ctx, k, client.Patch{Type: types.MergePatchType, Data: patch})
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsBadRequest(err):
		return failure{fmt.Errorf("writing %s: %w", k, err)}
	}
	return fmt.Errorf("writing %s: %w", k, err)
}

// running says that the migration is under way.
func (m *migration) running(ctx context.Context, message string) error {
	changed := meta.SetStatusCondition(&m.m.Status.Conditions, m.condition(storagemigrationv1beta1.MigrationRunning, metav1.ConditionTrue, "MigrationRunning", message))
	if !changed {
		return nil
	}
	return m.save(ctx)
}

// ended records the end of an attempt; an error that may pass is returned.
func (m *migration) ended(ctx context.Context, d *definition, err error) error {
	f, failed := err.(failure)
	if err != nil && !failed {
		return err
	}
	if err := d.end(ctx, !failed); err != nil {
		return err
	}
	kind, reason, message := storagemigrationv1beta1.MigrationSucceeded, "StorageVersionMigrationSucceeded", ""
	if failed {
		kind, reason, message = storagemigrationv1beta1.MigrationFailed, "StorageVersionMigrationFailed", f.Error()
	}
	meta.SetStatusCondition(&m.m.Status.Conditions, m.condition(storagemigrationv1beta1.MigrationRunning, metav1.ConditionFalse, "MigrationCompleted", "Migration completed"))
	meta.SetStatusCondition(&m.m.Status.Conditions, m.condition(kind, metav1.ConditionTrue, reason, message))
	return m.save(ctx)
}

func (m *migration) condition(t storagemigrationv1beta1.MigrationConditionType, s metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: string(t), Status: s, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(m.env.Clock.Now())}
}

func (m *migration) save(ctx context.Context) error {
	k := client.Key{Resource: migrations, Name: m.m.Name, Subresource: "status"}
	got, err := m.env.Client.Update(ctx, k, m.m.DeepCopy())
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recording the state of %s: %w", k, err)
	}
	m.m = got.DeepCopyObject().(*storagemigrationv1beta1.StorageVersionMigration)
	return nil
}
