package apiextensions

import (
	"context"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	internal "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
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
		return append(validation.ValidateCustomResourceDefinition(ctx, in), approval(d, nil)...)
	case subresource == "status":
		return validation.ValidateUpdateCustomResourceDefinitionStatus(in, before)
	}
	return append(validation.ValidateCustomResourceDefinitionUpdate(ctx, in, before), approval(d, old)...)
}

// approval checks that definitions in the groups of the Kubernetes community name
// who approved them. What was not approved before may stay so.
func approval(d, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	if !apihelpers.IsProtectedCommunityGroup(d.Spec.Group) {
		return nil
	}
	state, reason := apihelpers.GetAPIApprovalState(d.Annotations)
	if old != nil {
		if was, _ := apihelpers.GetAPIApprovalState(old.Annotations); was == state {
			return nil
		}
	}
	path := field.NewPath("metadata", "annotations").Key(apiextensionsv1.KubeAPIApprovedAnnotation)
	switch state {
	case apihelpers.APIApprovalInvalid:
		return field.ErrorList{field.Invalid(path, d.Annotations[apiextensionsv1.KubeAPIApprovedAnnotation], reason)}
	case apihelpers.APIApprovalMissing:
		return field.ErrorList{field.Required(path, reason)}
	}
	return nil
}
