package legacy

import (
	admv1 "k8s.io/api/admissionregistration/v1"
	admv1beta1 "k8s.io/api/admissionregistration/v1beta1"

	"knarr.dev/knarr/api/kind"
)

func mutatingWebhooks(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: "admissionregistration.k8s.io", Version: v1beta1}, hub, func(_ *admv1beta1.MutatingWebhookConfiguration, c *admv1.MutatingWebhookConfiguration) {
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			webhook(&w.FailurePolicy, &w.MatchPolicy, &w.SideEffects, &w.TimeoutSeconds, &w.AdmissionReviewVersions)
		}
	}, nil)
}

func validatingWebhooks(hub *kind.Kind) *kind.Kind {
	return view(kind.Kind{Group: "admissionregistration.k8s.io", Version: v1beta1}, hub, func(_ *admv1beta1.ValidatingWebhookConfiguration, c *admv1.ValidatingWebhookConfiguration) {
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			webhook(&w.FailurePolicy, &w.MatchPolicy, &w.SideEffects, &w.TimeoutSeconds, &w.AdmissionReviewVersions)
		}
	}, nil)
}

// webhook fills v1beta1's defaults. Side effects that are unknown can no longer be
// said: the webhook is told that a request is a dry run, and must look.
func webhook(failure **admv1.FailurePolicyType, match **admv1.MatchPolicyType, effects **admv1.SideEffectClass, seconds **int32, versions *[]string) {
	const oldTimeout = 30
	orNew(failure, admv1.Ignore)
	orNew(match, admv1.Exact)
	orNew(seconds, oldTimeout)
	if e := *effects; e == nil || *e == admv1.SideEffectClassUnknown || *e == admv1.SideEffectClassSome {
		careful := admv1.SideEffectClassNoneOnDryRun
		*effects = &careful
	}
	if len(*versions) == 0 {
		*versions = []string{v1beta1}
	}
}
