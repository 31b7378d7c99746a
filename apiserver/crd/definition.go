// Package crd serves the kinds that CustomResourceDefinitions declare, while the
// server runs: it judges their names, reads, defaults, prunes, validates and
// converts their objects by the declared schemas, and deletes their objects
// before a definition goes.
//
//	CustomResourceDefinition ──Definitions.Run──> conditions, registry.Serve
//	                                                   │ kind.Kind of each version
//	                            requests ──────────> version (kind.Custom)
//
// The schema libraries are those of k8s.io/apiextensions-apiserver. What they
// need is made when the first object needs it: a definition costs little at start.
//
// See https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
package crd

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	internal "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apimachineryversion "k8s.io/apimachinery/pkg/version"
	celconfig "k8s.io/apiserver/pkg/apis/cel"

	"knarr.dev/knarr/api/apiextensions"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/webhook"
)

// definition is one state of a CustomResourceDefinition, in use; immutable but
// for ending.
type definition struct {
	crd    *apiextensionsv1.CustomResourceDefinition
	ctx    context.Context // of the server, for conversions that nobody's request asks for
	call   *webhook.Caller
	ending *atomic.Bool // no new objects: the definition is being deleted

	storage  *version
	versions []*version // all of the spec, in the order of preference

	formsOnce sync.Once
	forms     *internal.CustomResourceDefinition
	formsErr  error
}

// version is one version of a definition. It implements kind.Custom.
type version struct {
	def  *definition
	spec *apiextensionsv1.CustomResourceDefinitionVersion
	gvk  schema.GroupVersionKind
	kind *kind.Kind

	once   sync.Once
	schema *structural.Structural // nil: anything goes
	props  *internal.JSONSchemaProps
	err    error

	validating sync.Once
	validator  validation.SchemaValidator
	rules      *cel.Validator
	badSchema  error
}

func newDefinition(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition, call *webhook.Caller) *definition {
	d := &definition{crd: crd, ctx: ctx, call: call, ending: &atomic.Bool{}}
	for i := range crd.Spec.Versions {
		v := &version{def: d, spec: &crd.Spec.Versions[i]}
		v.gvk = schema.GroupVersionKind{Group: crd.Spec.Group, Version: v.spec.Name, Kind: crd.Status.AcceptedNames.Kind}
		v.kind = v.declare()
		d.versions = append(d.versions, v)
		if v.spec.Storage {
			d.storage = v
		}
	}
	slices.SortStableFunc(d.versions, func(a, b *version) int {
		return apimachineryversion.CompareKubeAwareVersionStrings(b.spec.Name, a.spec.Name)
	})
	return d
}

// served are the kinds of the versions that requests may name.
func (d *definition) served() []*kind.Kind {
	var out []*kind.Kind
	for _, v := range d.versions {
		if v.spec.Served {
			out = append(out, v.kind)
		}
	}
	return out
}

func (d *definition) version(name string) *version {
	for _, v := range d.versions {
		if v.spec.Name == name {
			return v
		}
	}
	return nil
}

// internal is the definition in the form that the schema libraries read.
func (d *definition) internal() (*internal.CustomResourceDefinition, error) {
	d.formsOnce.Do(func() { d.forms, d.formsErr = apiextensions.Internal(d.crd) })
	return d.forms, d.formsErr
}

// structure returns the version's structural schema, or nil if it has none.
func (v *version) structure() (*structural.Structural, error) {
	v.once.Do(func() {
		in, err := v.def.internal()
		if err != nil {
			v.err = err
			return
		}
		val, err := internal.GetSchemaForVersion(in, v.spec.Name)
		if err != nil || val == nil || val.OpenAPIV3Schema == nil {
			v.err = err
			return
		}
		v.props = val.OpenAPIV3Schema
		if v.schema, err = structural.NewStructural(val.OpenAPIV3Schema); err == nil {
			err = defaulting.PruneDefaults(v.schema)
		}
		if err != nil {
			v.err = fmt.Errorf("schema of %s: %w", v.gvk, err)
		}
	})
	return v.schema, v.err
}

// validators compiles what objects are checked by.
func (v *version) validators() error {
	v.validating.Do(func() {
		s, err := v.structure()
		if err != nil {
			v.badSchema = err
			return
		}
		if v.validator, _, err = validation.NewSchemaValidator(v.props); err != nil {
			v.badSchema = fmt.Errorf("schema of %s: %w", v.gvk, err)
			return
		}
		if s != nil {
			v.rules = cel.NewValidator(s, true, celconfig.PerCallLimit)
		}
	})
	return v.badSchema
}

// Refuses implements kind.Custom.
func (v *version) Refuses() error {
	if !v.def.ending.Load() {
		return nil
	}
	err := apierrors.NewMethodNotSupported(v.kind.GroupResource(), "create")
	err.ErrStatus.Message = "create not allowed while custom resource definition is terminating"
	return err
}
