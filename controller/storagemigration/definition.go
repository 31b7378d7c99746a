package storagemigration

import (
	"context"
	"fmt"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/client"
)

var definitions = client.Resource{Group: apiextensionsv1.GroupName, Version: "v1", Resource: "customresourcedefinitions"}

// definition is the CustomResourceDefinition of what a migration migrates, before it
// begins. Nil: there is none.
type definition struct {
	migration *migration
	crd       *apiextensionsv1.CustomResourceDefinition
}

// definition reads the definition of the migration's resource.
func (m *migration) definition(ctx context.Context) (*definition, error) {
	r := m.m.Spec.Resource
	k := client.Key{Resource: definitions, Name: r.Resource + "." + r.Group}
	crd, err := client.Get[*apiextensionsv1.CustomResourceDefinition](ctx, m.env.Client, k)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", k, err)
	}
	return &definition{m, crd}, nil
}

// inForce tells whether the server stores a resource as the definition asks: it follows
// definitions with a short delay.
func (d *definition) inForce(r *client.ResourceInfo) bool {
	return d == nil || r.StorageVersionHash == kind.StorageVersionHash(schema.GroupVersionKind{Group: d.crd.Spec.Group, Version: d.stored(), Kind: d.crd.Spec.Names.Kind})
}

// stored is the version in which objects are stored.
func (d *definition) stored() string {
	i := slices.IndexFunc(d.crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Storage })
	return d.crd.Spec.Versions[i].Name
}

// begin says that the definition's objects are being migrated.
func (d *definition) begin(ctx context.Context) error {
	if d == nil {
		return nil
	}
	return d.save(ctx, apiextensionsv1.ConditionTrue, "MigrationRunning", fmt.Sprintf("Migration %s is running", d.migration.m.Name), d.crd.Status.StoredVersions)
}

// end says how that has ended. After a success all objects are stored in one version,
// unless the definition has changed meanwhile: then the migration has to be repeated.
func (d *definition) end(ctx context.Context, succeeded bool) error {
	if d == nil {
		return nil
	}
	if !succeeded {
		return d.save(ctx, apiextensionsv1.ConditionFalse, "MigrationFailed", fmt.Sprintf("Migration %s has failed", d.migration.m.Name), d.crd.Status.StoredVersions)
	}
	return d.save(ctx, apiextensionsv1.ConditionFalse, "MigrationSucceeded", "The migration has succeeded and the stored versions have been updated", []string{d.stored()})
}

// save records the condition StorageMigrating and the versions that are stored, if the
// definition is still the one that was read.
func (d *definition) save(ctx context.Context, status apiextensionsv1.ConditionStatus, reason, message string, stored []string) error {
	crd := d.crd.DeepCopy()
	crd.Status.StoredVersions = stored
	c := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.StorageMigrating, Status: status, Reason: reason, Message: message, ObservedGeneration: crd.Generation,
		LastTransitionTime: metav1.NewTime(d.migration.env.Clock.Now()),
	}
	i := slices.IndexFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.StorageMigrating
	})
	if i < 0 {
		crd.Status.Conditions = append(crd.Status.Conditions, c)
	} else {
		if old := crd.Status.Conditions[i]; old.Status == status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		crd.Status.Conditions[i] = c
	}
	k := client.Key{Resource: definitions, Name: crd.Name, Subresource: "status"}
	got, err := d.migration.env.Client.Update(ctx, k, crd)
	if apierrors.IsNotFound(err) {
		return nil // its objects are gone, too
	}
	if err != nil {
		return fmt.Errorf("recording the state of %s: %w", k, err)
	}
	d.crd = got.DeepCopyObject().(*apiextensionsv1.CustomResourceDefinition)
	return nil
}
