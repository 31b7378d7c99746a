package diff_test

import (
	"testing"

	"knarr.dev/knarr/test/diff"
)

// TestOpenAPI: every operation that upstream describes is described, with the same
// name, bodies and parameters, by which programs find it and generate clients.
func TestOpenAPI(t *testing.T) {
	const prefix = "openapi: "
	var want diff.OpenAPI
	recorded(t, "openapi", &want)
	got, err := start(t).Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	excuses := excusesFor(t, prefix)
	for name, w := range want.Operations {
		judge(t, prefix, name, got.Operations[name], w, excuses)
	}
	for name := range excuses {
		t.Errorf("exception %s: upstream has no such operation", name)
	}
	if len(want.Operations) < 500 {
		t.Errorf("only %d operations are recorded", len(want.Operations))
	}
}
