package legacy

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"

	"knarr.dev/knarr/api/kind"
)

// definition is apiextensions.k8s.io/v1beta1: what is said once for all versions
// there is said for each in v1, which also wants a schema that says its types.
func definition(hub *kind.Kind) *kind.Kind {
	gvk := hub.GVK()
	gvk.Version = v1beta1
	return view(kind.Kind{
		Group: hub.Group, Version: v1beta1,
		New:        func() kind.Object { return &apiextensionsv1beta1.CustomResourceDefinition{} },
		NewList:    func() runtime.Object { return &apiextensionsv1beta1.CustomResourceDefinitionList{} },
		Deprecated: deprecation(gvk, hub.GVK(), &apiextensionsv1beta1.CustomResourceDefinition{}),
	}, hub, definitionUp, definitionDown)
}

func definitionUp(old *apiextensionsv1beta1.CustomResourceDefinition, d *apiextensionsv1.CustomResourceDefinition) {
	s := &old.Spec
	versions := s.Versions
	if len(versions) == 0 && s.Version != "" {
		versions = []apiextensionsv1beta1.CustomResourceDefinitionVersion{{Name: s.Version, Served: true, Storage: true}}
	}
	preserve := s.PreserveUnknownFields == nil || *s.PreserveUnknownFields
	d.Spec.PreserveUnknownFields = false
	d.Spec.Versions = make([]apiextensionsv1.CustomResourceDefinitionVersion, len(versions))
	for i := range versions {
		v := versions[i]
		if v.Schema == nil {
			v.Schema = s.Validation
		}
		if v.Subresources == nil {
			v.Subresources = s.Subresources
		}
		if v.AdditionalPrinterColumns == nil {
			v.AdditionalPrinterColumns = s.AdditionalPrinterColumns
		}
		if v.SelectableFields == nil {
			v.SelectableFields = s.SelectableFields
		}
		out := &d.Spec.Versions[i]
		_ = convert(&v, out) // types of plain data; what JSON they give was read from JSON
		for n, c := range v.AdditionalPrinterColumns {
			out.AdditionalPrinterColumns[n].JSONPath = c.JSONPath
		}
		if out.Schema == nil || out.Schema.OpenAPIV3Schema == nil {
			out.Schema = &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}
		}
		structural(out.Schema.OpenAPIV3Schema, preserve)
	}
	if c := s.Conversion; c != nil && c.Strategy == apiextensionsv1beta1.WebhookConverter {
		hook := &apiextensionsv1.WebhookConversion{ConversionReviewVersions: c.ConversionReviewVersions}
		if c.WebhookClientConfig != nil {
			hook.ClientConfig = &apiextensionsv1.WebhookClientConfig{}
			_ = convert(c.WebhookClientConfig, hook.ClientConfig)
		}
		if len(hook.ConversionReviewVersions) == 0 {
			hook.ConversionReviewVersions = []string{v1beta1}
		}
		d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: hook}
	}
}

// structural says the types that v1beta1 let be guessed, and with preserve at each
// object that fields which the schema does not know are kept: v1beta1 had one
// switch for all.
func structural(s *apiextensionsv1.JSONSchemaProps, preserve bool) {
	yes := true
	switch {
	case s.Type != "" || s.XIntOrString || s.XPreserveUnknownFields != nil && *s.XPreserveUnknownFields:
	case s.Items != nil:
		s.Type = "array"
	case s.Properties != nil || s.AdditionalProperties != nil:
		s.Type = "object"
	}
	for name, p := range s.Properties {
		structural(&p, preserve)
		s.Properties[name] = p
	}
	if s.Items != nil && s.Items.Schema != nil {
		structural(s.Items.Schema, preserve)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		structural(s.AdditionalProperties.Schema, preserve)
	}
	if s.Type == "" && !s.XIntOrString && s.XPreserveUnknownFields == nil && len(s.AllOf)+len(s.AnyOf)+len(s.OneOf) == 0 {
		s.XPreserveUnknownFields = &yes // anything
	}
	if preserve && s.Type == "object" && s.AdditionalProperties == nil {
		s.XPreserveUnknownFields = &yes
	}
}

func definitionDown(d *apiextensionsv1.CustomResourceDefinition, old *apiextensionsv1beta1.CustomResourceDefinition) {
	if len(d.Spec.Versions) > 0 {
		old.Spec.Version = d.Spec.Versions[0].Name
	}
	preserve := d.Spec.PreserveUnknownFields
	old.Spec.PreserveUnknownFields = &preserve
	for i := range d.Spec.Versions {
		for n, c := range d.Spec.Versions[i].AdditionalPrinterColumns {
			old.Spec.Versions[i].AdditionalPrinterColumns[n].JSONPath = c.JSONPath
		}
	}
	if c := d.Spec.Conversion; c != nil && c.Webhook != nil && old.Spec.Conversion != nil {
		old.Spec.Conversion.ConversionReviewVersions = c.Webhook.ConversionReviewVersions
		if c.Webhook.ClientConfig != nil {
			old.Spec.Conversion.WebhookClientConfig = &apiextensionsv1beta1.WebhookClientConfig{}
			_ = convert(c.Webhook.ClientConfig, old.Spec.Conversion.WebhookClientConfig)
		}
	}
}
