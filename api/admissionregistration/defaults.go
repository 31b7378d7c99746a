package admissionregistration

import (
	admv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The defaults of v1.
const (
	defaultTimeout = 10 // seconds
	defaultPort    = 443
)

// orDefault sets *p if it is absent.
func orDefault[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

func defaultRules(rules []admv1.RuleWithOperations) {
	for i := range rules {
		orDefault(&rules[i].Scope, admv1.AllScopes)
	}
}

// defaultHook fills what both sorts of webhooks have.
func defaultHook(h hook) {
	orDefault(h.FailurePolicy, admv1.Fail)
	orDefault(h.MatchPolicy, admv1.Equivalent)
	orDefault(h.NamespaceSelector, metav1.LabelSelector{})
	orDefault(h.ObjectSelector, metav1.LabelSelector{})
	orDefault(h.TimeoutSeconds, defaultTimeout)
	if s := h.ClientConfig.Service; s != nil {
		orDefault(&s.Port, defaultPort)
	}
	defaultRules(h.Rules)
}

func defaultValidating(c *admv1.ValidatingWebhookConfiguration) {
	for i := range c.Webhooks {
		defaultHook(validatingHook(&c.Webhooks[i]))
	}
}

func defaultMutating(c *admv1.MutatingWebhookConfiguration) {
	for i := range c.Webhooks {
		defaultHook(mutatingHook(&c.Webhooks[i]))
		orDefault(&c.Webhooks[i].ReinvocationPolicy, admv1.NeverReinvocationPolicy)
	}
}

func defaultMatch(m *admv1.MatchResources) {
	if m == nil {
		return
	}
	orDefault(&m.MatchPolicy, admv1.Equivalent)
	orDefault(&m.NamespaceSelector, metav1.LabelSelector{})
	orDefault(&m.ObjectSelector, metav1.LabelSelector{})
	for _, rules := range [][]admv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range rules {
			orDefault(&rules[i].Scope, admv1.AllScopes)
		}
	}
}

func defaultValidatingPolicy(p *admv1.ValidatingAdmissionPolicy) {
	orDefault(&p.Spec.FailurePolicy, admv1.Fail)
	defaultMatch(p.Spec.MatchConstraints)
}

func defaultMutatingPolicy(p *admv1.MutatingAdmissionPolicy) {
	orDefault(&p.Spec.FailurePolicy, admv1.Fail)
	defaultMatch(p.Spec.MatchConstraints)
}

// hook is what validating and mutating webhooks share. Pointers lead into the
// webhook.
type hook struct {
	Name                    string
	ClientConfig            *admv1.WebhookClientConfig
	Rules                   []admv1.RuleWithOperations
	FailurePolicy           **admv1.FailurePolicyType
	MatchPolicy             **admv1.MatchPolicyType
	NamespaceSelector       **metav1.LabelSelector
	ObjectSelector          **metav1.LabelSelector
	SideEffects             *admv1.SideEffectClass
	TimeoutSeconds          **int32
	AdmissionReviewVersions []string
	MatchConditions         []admv1.MatchCondition
}

func validatingHook(w *admv1.ValidatingWebhook) hook {
	return hook{
		Name: w.Name, ClientConfig: &w.ClientConfig, Rules: w.Rules, FailurePolicy: &w.FailurePolicy, MatchPolicy: &w.MatchPolicy,
		NamespaceSelector: &w.NamespaceSelector, ObjectSelector: &w.ObjectSelector, SideEffects: w.SideEffects,
		TimeoutSeconds: &w.TimeoutSeconds, AdmissionReviewVersions: w.AdmissionReviewVersions, MatchConditions: w.MatchConditions,
	}
}

func mutatingHook(w *admv1.MutatingWebhook) hook {
	return hook{
		Name: w.Name, ClientConfig: &w.ClientConfig, Rules: w.Rules, FailurePolicy: &w.FailurePolicy, MatchPolicy: &w.MatchPolicy,
		NamespaceSelector: &w.NamespaceSelector, ObjectSelector: &w.ObjectSelector, SideEffects: w.SideEffects,
		TimeoutSeconds: &w.TimeoutSeconds, AdmissionReviewVersions: w.AdmissionReviewVersions, MatchConditions: w.MatchConditions,
	}
}
