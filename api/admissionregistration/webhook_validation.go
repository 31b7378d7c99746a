package admissionregistration

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	admv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/api/expression"
)

const (
	maxTimeout         = 30 // seconds
	maxMatchConditions = 64
)

// reviewVersions are the versions of AdmissionReview that the server speaks.
var reviewVersions = []string{"v1", "v1beta1"}

func validateValidating(c *admv1.ValidatingWebhookConfiguration) check.Errors {
	return validateHooks(hooksOf(c.Webhooks, validatingHook), nil)
}

func validateValidatingUpdate(c, old *admv1.ValidatingWebhookConfiguration) check.Errors {
	return validateHooks(hooksOf(c.Webhooks, validatingHook), hooksOf(old.Webhooks, validatingHook))
}

func validateMutating(c *admv1.MutatingWebhookConfiguration) check.Errors {
	return append(validateHooks(hooksOf(c.Webhooks, mutatingHook), nil), reinvocations(c)...)
}

func validateMutatingUpdate(c, old *admv1.MutatingWebhookConfiguration) check.Errors {
	return append(validateHooks(hooksOf(c.Webhooks, mutatingHook), hooksOf(old.Webhooks, mutatingHook)), reinvocations(c)...)
}

func reinvocations(c *admv1.MutatingWebhookConfiguration) (errs check.Errors) {
	for i := range c.Webhooks {
		if p := c.Webhooks[i].ReinvocationPolicy; p != nil {
			errs = append(errs, check.Exactly(field.NewPath("webhooks").Index(i).Child("reinvocationPolicy"), *p,
				admv1.IfNeededReinvocationPolicy, admv1.NeverReinvocationPolicy)...)
		}
	}
	return errs
}

func hooksOf[W any](list []W, of func(*W) hook) []hook {
	out := make([]hook, len(list))
	for i := range list {
		out[i] = of(&list[i])
	}
	return out
}

// validateHooks checks the webhooks of a configuration; expressions that old has
// already are not compiled again: they stay valid after an upgrade.
func validateHooks(hooks, old []hook) (errs check.Errors) {
	known := sets.New[string]()
	for _, h := range old {
		for _, c := range h.MatchConditions {
			known.Insert(c.Expression)
		}
	}
	names := sets.New[string]()
	for i, h := range hooks {
		at := field.NewPath("webhooks").Index(i)
		errs = append(errs, validateHook(h, known, at)...)
		errs = append(errs, validateReviewVersions(h.AdmissionReviewVersions, at.Child("admissionReviewVersions"))...)
		if h.Name != "" && names.Has(h.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), h.Name))
		}
		names.Insert(h.Name)
	}
	return errs
}

func validateHook(h hook, known sets.Set[string], at *field.Path) check.Errors {
	errs := validation.IsFullyQualifiedName(at.Child("name"), h.Name)
	for i := range h.Rules {
		errs = append(errs, validateRule(&h.Rules[i], allOperations, at.Child("rules").Index(i))...)
	}
	errs = append(errs, failurePolicy(*h.FailurePolicy, at.Child("failurePolicy"))...)
	errs = append(errs, matchPolicy(*h.MatchPolicy, at.Child("matchPolicy"))...)
	classes := []admv1.SideEffectClass{admv1.SideEffectClassNone, admv1.SideEffectClassNoneOnDryRun}
	if h.SideEffects == nil {
		errs = append(errs, field.Required(at.Child("sideEffects"), "must specify one of None, NoneOnDryRun"))
	} else {
		errs = append(errs, check.Exactly(at.Child("sideEffects"), *h.SideEffects, classes...)...)
	}
	if t := *h.TimeoutSeconds; t != nil && (*t < 1 || *t > maxTimeout) {
		errs = append(errs, field.Invalid(at.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds"))
	}
	errs = append(errs, check.Selector(at.Child("namespaceSelector"), *h.NamespaceSelector)...)
	errs = append(errs, check.Selector(at.Child("objectSelector"), *h.ObjectSelector)...)
	errs = append(errs, validateClient(h.ClientConfig, at.Child("clientConfig"))...)
	return append(errs, validateConditions(h.MatchConditions, false, known, at.Child("matchConditions"))...)
}

func validateClient(c *admv1.WebhookClientConfig, at *field.Path) check.Errors {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		return check.Errors{field.Required(at, "exactly one of url or service is required")}
	case c.URL != nil:
		return validateURL(*c.URL, at.Child("url"))
	}
	return validateService(c.Service, at.Child("service"))
}

func validateURL(text string, at *field.Path) (errs check.Errors) {
	const form = "; desired format: https://host[/path]"
	u, err := url.Parse(text)
	if err != nil {
		return check.Errors{field.Required(at, "url must be a valid URL: "+err.Error()+form)}
	}
	if u.Scheme != "https" {
		errs = append(errs, field.Invalid(at, u.Scheme, "'https' is the only allowed URL scheme"+form))
	}
	if u.Host == "" {
		errs = append(errs, field.Invalid(at, u.Host, "host must be specified"+form))
	}
	if u.User != nil {
		errs = append(errs, field.Invalid(at, u.User.String(), "user information is not permitted in the URL"))
	}
	if u.Fragment != "" {
		errs = append(errs, field.Invalid(at, u.Fragment, "fragments are not permitted in the URL"))
	}
	if u.RawQuery != "" {
		errs = append(errs, field.Invalid(at, u.RawQuery, "query parameters are not permitted in the URL"))
	}
	return errs
}

func validateService(s *admv1.ServiceReference, at *field.Path) check.Errors {
	// Kubernetes takes one for the other here, and clients know it so.
	errs := append(check.Required(at.Child("namespace"), s.Name), check.Required(at.Child("name"), s.Namespace)...)
	if s.Port != nil {
		if msgs := validation.IsValidPortNum(int(*s.Port)); msgs != nil {
			errs = append(errs, field.Invalid(at.Child("port"), *s.Port, "port is not valid: "+strings.Join(msgs, ", ")))
		}
	}
	if s.Path == nil || *s.Path == "" || *s.Path == "/" {
		return errs
	}
	p, at := *s.Path, at.Child("path")
	if p == "//" {
		return append(errs, field.Invalid(at, p, "segment[0] may not be empty"))
	}
	if !strings.HasPrefix(p, "/") {
		errs = append(errs, field.Invalid(at, p, "must start with a '/'"))
	}
	for i, step := range strings.Split(strings.TrimSuffix(p[1:], "/"), "/") {
		if step == "" {
			errs = append(errs, field.Invalid(at, p, fmt.Sprintf("segment[%d] may not be empty", i)))
			continue
		}
		for _, msg := range validation.IsDNS1123Subdomain(step) {
			errs = append(errs, field.Invalid(at, p, fmt.Sprintf("segment[%d]: %v", i, msg)))
		}
	}
	return errs
}

func validateReviewVersions(versions []string, at *field.Path) (errs check.Errors) {
	if len(versions) == 0 {
		return check.Errors{field.Required(at, "must specify one of "+strings.Join(reviewVersions, ", "))}
	}
	seen, spoken := sets.New[string](), false
	for i, v := range versions {
		if seen.Has(v) {
			errs = append(errs, field.Invalid(at.Index(i), v, "duplicate version"))
			continue
		}
		seen.Insert(v)
		errs = append(errs, check.Each(at.Index(i), v, validation.IsDNS1035Label(v))...)
		spoken = spoken || slices.Contains(reviewVersions, v)
	}
	if !spoken {
		errs = append(errs, field.Invalid(at, versions, "must include at least one of "+strings.Join(reviewVersions, ", ")))
	}
	return errs
}

// validateConditions checks match conditions; params tells whether the policy has
// parameters.
func validateConditions(list []admv1.MatchCondition, params bool, known sets.Set[string], at *field.Path) (errs check.Errors) {
	if len(list) > maxMatchConditions {
		errs = append(errs, field.TooMany(at, len(list), maxMatchConditions))
	}
	names := sets.New[string]()
	for i, c := range list {
		p := at.Index(i)
		if text := strings.TrimSpace(c.Expression); text == "" {
			errs = append(errs, field.Required(p.Child("expression"), ""))
		} else if !known.Has(c.Expression) {
			errs = append(errs, expression.Check(expression.Of(text, celgo.BoolType), expression.Options(params, true), p.Child("expression"))...)
		}
		if c.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
			continue
		}
		errs = append(errs, check.Each(p.Child("name"), c.Name, validation.IsQualifiedName(c.Name))...)
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		names.Insert(c.Name)
	}
	return errs
}
