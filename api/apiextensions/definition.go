// Package apiextensions declares custom resource definitions, as
// https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
// describes them. What they declare is served by apiserver/crd.
package apiextensions

import (
	"context"
	"fmt"
	"slices"
	"time"

	internal "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

// CustomResourceDefinition declares apiextensions.k8s.io/v1 CustomResourceDefinition.
func CustomResourceDefinition() *kind.Kind {
	return &kind.Kind{
		Group: apiextensionsv1.GroupName, Version: "v1", Kind: "CustomResourceDefinition", Resource: "customresourcedefinitions",
		ShortNames: []string{"crd", "crds"}, Categories: []string{"api-extensions"}, HasStatus: true,
		Storage: apiextensionsv1.GroupName + "/customresourcedefinitions",
		New: func() kind.Object {
			// With its type: the field manager knows it by nothing else.
			return &apiextensionsv1.CustomResourceDefinition{TypeMeta: metav1.TypeMeta{APIVersion: apiextensionsv1.SchemeGroupVersion.String(), Kind: "CustomResourceDefinition"}}
		},
		NewList:       func() runtime.Object { return &apiextensionsv1.CustomResourceDefinitionList{} },
		Default:       kind.Each(Default),
		PrepareCreate: kind.Each(prepareCreate),
		PrepareUpdate: kind.Pair(prepareUpdate),
		PrepareStatus: kind.Pair(prepareStatus),
		PrepareDelete: kind.Each(prepareDelete),
		Check: func(ctx context.Context, obj, old kind.Object, subresource string) (errs fieldErrors) {
			before, _ := old.(*apiextensionsv1.CustomResourceDefinition)
			return validate(ctx, obj.(*apiextensionsv1.CustomResourceDefinition), before, subresource)
		},
		Columns: columns.Named(columns.CreatedAt()),
		Row: kind.RowOf(func(d *apiextensionsv1.CustomResourceDefinition, _ time.Time) []any {
			return []any{d.Name, d.CreationTimestamp.UTC().Format(time.RFC3339)}
		}),
	}
}

// Default fills what a definition may leave out.
func Default(d *apiextensionsv1.CustomResourceDefinition) {
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&d.Spec)
	if c := d.Spec.Conversion; c.Webhook != nil && c.Webhook.ClientConfig != nil && c.Webhook.ClientConfig.Service != nil {
		apiextensionsv1.SetDefaults_ServiceReference(c.Webhook.ClientConfig.Service)
	}
	if len(d.Status.StoredVersions) == 0 {
		addStored(d)
	}
}

func prepareCreate(d *apiextensionsv1.CustomResourceDefinition) {
	d.Status = apiextensionsv1.CustomResourceDefinitionStatus{}
	addStored(d)
}

// addStored notes that objects may be stored in the storage version from now on.
func addStored(d *apiextensionsv1.CustomResourceDefinition) {
	for _, v := range d.Spec.Versions {
		if !v.Storage {
			continue
		}
		if !slices.Contains(d.Status.StoredVersions, v.Name) {
			d.Status.StoredVersions = append(d.Status.StoredVersions, v.Name)
		}
		return // a second one is a fault
	}
}

func prepareUpdate(d, old *apiextensionsv1.CustomResourceDefinition) {
	d.Status = *old.Status.DeepCopy()
	addStored(d)
}

func prepareStatus(d, old *apiextensionsv1.CustomResourceDefinition) {
	d.Spec = *old.Spec.DeepCopy()
	meta := old.ObjectMeta.DeepCopy()
	meta.ResourceVersion = d.ResourceVersion
	meta.ManagedFields = d.ManagedFields
	d.ObjectMeta = *meta
}

// prepareDelete has the instances deleted before their definition goes.
func prepareDelete(d *apiextensionsv1.CustomResourceDefinition) {
	if d.DeletionTimestamp == nil && !slices.Contains(d.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer) {
		d.Finalizers = append(d.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer)
	}
}

// Internal converts a definition to the form that the schema libraries read.
func Internal(d *apiextensionsv1.CustomResourceDefinition) (*internal.CustomResourceDefinition, error) {
	out := &internal.CustomResourceDefinition{}
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(d.DeepCopy(), out, nil); err != nil {
		return nil, fmt.Errorf("definition %s: %w", d.Name, err)
	}
	return out, nil
}
