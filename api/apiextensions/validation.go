package apiextensions

import (
	"context"

	internal "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

type fieldErrors = field.ErrorList

// validate checks a new definition (old is nil) or a change.
func validate(ctx context.Context, d, old *apiextensionsv1.CustomResourceDefinition, subresource string) field.ErrorList {
	in, err := Internal(d)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	var before *internal.CustomResourceDefinition
	if old != nil {
		if before, err = Internal(old); err != nil {
			return field.ErrorList{field.InternalError(nil, err)}
		}
		// The registry has compared the revisions, and takes none for any.
		in.ResourceVersion = before.ResourceVersion
	}
	switch {
	case old == nil:
		return validation.ValidateCustomResourceDefinition(ctx, in)
	case old.DeletionTimestamp != nil && equality.Semantic.DeepEqual(d.Spec, old.Spec) && subresource == "":
		return nil // its finalizers go: a status that fits no more must not keep it
	case subresource == "status":
		return validation.ValidateUpdateCustomResourceDefinitionStatus(in, before)
	}
	return validation.ValidateCustomResourceDefinitionUpdate(ctx, in, before)
}
