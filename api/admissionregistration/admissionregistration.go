// Package admissionregistration declares the configurations of admission:
// webhooks, and policies with their bindings.
package admissionregistration

import (
	"fmt"
	"time"

	admv1 "k8s.io/api/admissionregistration/v1"

	"knarr.dev/knarr/api/columns"
	"knarr.dev/knarr/api/kind"
)

const group = "admissionregistration.k8s.io"

var categories = []string{"api-extensions"}

// ValidatingWebhookConfiguration declares the v1 kind.
func ValidatingWebhookConfiguration() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ValidatingWebhookConfiguration", Resource: "validatingwebhookconfigurations", Categories: categories,
		Default:        kind.Each(defaultValidating),
		Validate:       kind.Check(validateValidating),
		ValidateUpdate: kind.CheckChange(validateValidatingUpdate),
		Columns:        columns.Named(columns.Count("Webhooks", "How many webhooks it has."), columns.Age()),
		Row: kind.RowOf(func(c *admv1.ValidatingWebhookConfiguration, now time.Time) []any {
			return []any{c.Name, int64(len(c.Webhooks)), columns.Created(c, now)}
		}),
	}
}

// MutatingWebhookConfiguration declares the v1 kind.
func MutatingWebhookConfiguration() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "MutatingWebhookConfiguration", Resource: "mutatingwebhookconfigurations", Categories: categories,
		Default:        kind.Each(defaultMutating),
		Validate:       kind.Check(validateMutating),
		ValidateUpdate: kind.CheckChange(validateMutatingUpdate),
		Columns:        columns.Named(columns.Count("Webhooks", "How many webhooks it has."), columns.Age()),
		Row: kind.RowOf(func(c *admv1.MutatingWebhookConfiguration, now time.Time) []any {
			return []any{c.Name, int64(len(c.Webhooks)), columns.Created(c, now)}
		}),
	}
}

// ValidatingAdmissionPolicy declares the v1 kind.
func ValidatingAdmissionPolicy() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ValidatingAdmissionPolicy", Resource: "validatingadmissionpolicies", Categories: categories, HasStatus: true,
		Default:        kind.Each(defaultValidatingPolicy),
		Validate:       kind.Check(validateValidatingPolicy),
		ValidateUpdate: kind.CheckChange(validateValidatingPolicyUpdate),
		ValidateStatus: kind.CheckChange(validateValidatingPolicyStatus),
		Columns: columns.Named(
			columns.Count("Validations", "How many validations it makes."),
			columns.Text("ParamKind", "The kind of its parameters."),
			columns.Age(),
		),
		Row: kind.RowOf(func(p *admv1.ValidatingAdmissionPolicy, now time.Time) []any {
			return []any{p.Name, int64(len(p.Spec.Validations)), paramKindText(p.Spec.ParamKind), columns.Created(p, now)}
		}),
	}
}

// ValidatingAdmissionPolicyBinding declares the v1 kind.
func ValidatingAdmissionPolicyBinding() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "ValidatingAdmissionPolicyBinding", Resource: "validatingadmissionpolicybindings", Categories: categories,
		Default:  kind.Each(func(b *admv1.ValidatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) }),
		Validate: kind.Check(validateValidatingBinding),
		Columns:  bindingColumns(),
		Row: kind.RowOf(func(b *admv1.ValidatingAdmissionPolicyBinding, now time.Time) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRefText(b.Spec.ParamRef), columns.Created(b, now)}
		}),
	}
}

// MutatingAdmissionPolicy declares the v1 kind.
func MutatingAdmissionPolicy() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "MutatingAdmissionPolicy", Resource: "mutatingadmissionpolicies", Categories: categories,
		Default:        kind.Each(defaultMutatingPolicy),
		Validate:       kind.Check(validateMutatingPolicy),
		ValidateUpdate: kind.CheckChange(validateMutatingPolicyUpdate),
		Columns: columns.Named(
			columns.Count("Mutations", "How many mutations it makes."),
			columns.Text("ParamKind", "The kind of its parameters."),
			columns.Age(),
		),
		Row: kind.RowOf(func(p *admv1.MutatingAdmissionPolicy, now time.Time) []any {
			return []any{p.Name, int64(len(p.Spec.Mutations)), paramKindText(p.Spec.ParamKind), columns.Created(p, now)}
		}),
	}
}

// MutatingAdmissionPolicyBinding declares the v1 kind.
func MutatingAdmissionPolicyBinding() *kind.Kind {
	return &kind.Kind{
		Group: group, Version: "v1", Kind: "MutatingAdmissionPolicyBinding", Resource: "mutatingadmissionpolicybindings", Categories: categories,
		Default:  kind.Each(func(b *admv1.MutatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) }),
		Validate: kind.Check(validateMutatingBinding),
		Columns:  bindingColumns(),
		Row: kind.RowOf(func(b *admv1.MutatingAdmissionPolicyBinding, now time.Time) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRefText(b.Spec.ParamRef), columns.Created(b, now)}
		}),
	}
}

func bindingColumns() []columns.Column {
	return columns.Named(columns.Text("PolicyName", "The policy that it binds."), columns.Text("ParamRef", "The policy's parameters."), columns.Age())
}

const unset = "<unset>"

func paramKindText(k *admv1.ParamKind) string {
	if k == nil {
		return unset
	}
	return fmt.Sprintf("%s/%s", k.APIVersion, k.Kind)
}

func paramRefText(r *admv1.ParamRef) string {
	switch {
	case r == nil:
		return unset
	case r.Namespace == "":
		return "*/" + r.Name
	}
	return r.Namespace + "/" + r.Name
}
