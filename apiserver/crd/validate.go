package crd

import (
	"context"
	"fmt"
	"math"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"

	"knarr.dev/knarr/api/kind"
)

// check validates an object, or a change of one: what was invalid before and has
// not been changed may stay so.
func (v *version) check(ctx context.Context, obj, old kind.Object, _ string) field.ErrorList {
	if err := v.validators(); err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return field.ErrorList{field.InternalError(nil, fmt.Errorf("have a %T", obj))}
	}
	var errs field.ErrorList
	if u.GetKind() != v.gvk.Kind {
		errs = append(errs, field.Invalid(field.NewPath("kind"), u.GetKind(), "must be "+v.gvk.Kind))
	}
	if u.GetAPIVersion() != v.gvk.GroupVersion().String() {
		errs = append(errs, field.Invalid(field.NewPath("apiVersion"), u.GetAPIVersion(), "must be "+v.gvk.GroupVersion().String()))
	}
	if before, ok := old.(*unstructured.Unstructured); ok {
		return append(errs, v.checkChange(ctx, u.Object, before.Object)...)
	}
	errs = append(errs, validation.ValidateCustomResource(nil, u.Object, v.validator)...)
	errs = append(errs, v.checkScale(u.Object)...)
	errs = append(errs, objectmeta.Validate(nil, u.Object, v.schema, false)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, v.schema, u.Object)...)
	return v.checkRules(ctx, errs, u.Object, nil)
}

func (v *version) checkChange(ctx context.Context, obj, old map[string]any) (errs field.ErrorList) {
	var unchanged []validation.ValidationOption
	var unchangedRules []cel.Option
	if v.schema != nil {
		both := common.NewCorrelatedObject(obj, old, &model.Structural{Structural: v.schema})
		unchanged = append(unchanged, validation.WithRatcheting(both))
		unchangedRules = append(unchangedRules, cel.WithRatcheting(both))
	}
	// What is valid by itself, as most is, need not be compared with what was.
	if len(validation.ValidateCustomResource(nil, obj, v.validator)) > 0 {
		errs = validation.ValidateCustomResourceUpdate(nil, obj, old, v.validator, unchanged...)
	}
	errs = append(errs, v.checkScale(obj)...)
	errs = append(errs, objectmeta.Validate(nil, obj, v.schema, false)...)
	if twice := listtype.ValidateListSetsAndMaps(nil, v.schema, obj); len(twice) > 0 && len(listtype.ValidateListSetsAndMaps(nil, v.schema, old)) == 0 {
		errs = append(errs, twice...)
	}
	return v.checkRules(ctx, errs, obj, old, unchangedRules...)
}

// checkRules evaluates x-kubernetes-validations, if the schema's own demands on
// the form are met.
func (v *version) checkRules(ctx context.Context, errs field.ErrorList, obj, old map[string]any, opts ...cel.Option) field.ErrorList {
	if v.rules == nil {
		return errs
	}
	for _, e := range errs {
		switch e.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return append(errs, field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"))
		}
	}
	var before any
	if old != nil {
		before = old
	}
	more, _ := v.rules.Validate(ctx, nil, v.schema, obj, before, celconfig.RuntimeCELCostBudget, opts...)
	return append(errs, more...)
}

// checkScale checks what the scale subresource shows.
func (v *version) checkScale(obj map[string]any) (errs field.ErrorList) {
	if v.spec.Subresources == nil || v.spec.Subresources.Scale == nil {
		return nil
	}
	s := v.spec.Subresources.Scale
	for _, path := range []string{s.SpecReplicasPath, s.StatusReplicasPath} {
		at := split(path)
		n, found, err := unstructured.NestedInt64(obj, at...)
		where := field.NewPath(path) // with its leading dot, as Kubernetes says it
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(where, n, err.Error()))
		case found && n < 0:
			errs = append(errs, field.Invalid(where, n, "should be a non-negative integer"))
		case found && n > math.MaxInt32:
			errs = append(errs, field.Invalid(where, n, fmt.Sprintf("should be less than or equal to %v", math.MaxInt32)))
		}
	}
	if s.LabelSelectorPath != nil && *s.LabelSelectorPath != "" {
		at := split(*s.LabelSelectorPath)
		if text, _, err := unstructured.NestedString(obj, at...); err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*s.LabelSelectorPath), text, err.Error()))
		}
	}
	return errs
}
