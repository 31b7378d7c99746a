package admissionregistration_test

import (
	"testing"

	admv1 "k8s.io/api/admissionregistration/v1"

	"knarr.dev/knarr/api/admissionregistration"
)

// FuzzConditions: any text as an expression is either compiled or refused, and
// the verdict is the same twice.
func FuzzConditions(f *testing.F) {
	for _, s := range []string{"true", "object.metadata.name == 'x'", "... [] bad", "params.x", "request.dryRun ? 1 : 2", "[1,2].all(x, x > 0)", "'\\x'", "has(object.a.b)", ""} {
		f.Add(s)
	}
	k := admissionregistration.ValidatingWebhookConfiguration()
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<10 {
			return
		}
		c := &admv1.ValidatingWebhookConfiguration{Webhooks: []admv1.ValidatingWebhook{{MatchConditions: []admv1.MatchCondition{{Name: "c", Expression: text}}}}}
		if one, two := k.Validate(c).ToAggregate(), k.Validate(c).ToAggregate(); one.Error() != two.Error() {
			t.Errorf("%q: %v, then %v", text, one, two)
		}
	})
}
