package api

import (
	"encoding/json"
	"testing"

	"knarr.dev/knarr/apiserver/apitest"
)

// TestDescriptions: kubectl explain has a text for every kind and field that is
// published.
func TestDescriptions(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c := apitest.ClientOf(t, s.Admin(t))
	b := must(c.Discovery().RESTClient().Get().AbsPath("/openapi/v2").SetHeader("Accept", "application/json").DoRaw(t.Context()))(t)
	type model struct {
		Description string
		Properties  map[string]struct{ Description string }
	}
	var doc struct{ Definitions map[string]model }
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Definitions) < 700 {
		t.Errorf("only %d models are published", len(doc.Definitions))
	}
	undescribed := map[string]bool{ // k8s.io/api says nothing of them
		"io.k8s.api.networking.v1.IngressRule.http":                          true,
		"io.k8s.api.networking.v1beta1.IngressRule.http":                     true,
		"io.k8s.api.storage.v1.VolumeAttachmentSource.inlineVolumeSpec":      true,
		"io.k8s.api.storage.v1beta1.VolumeAttachmentSource.inlineVolumeSpec": true,
	}
	for name, m := range doc.Definitions {
		if m.Description == "" {
			t.Errorf("%s has no description", name)
		}
		for field, p := range m.Properties {
			if p.Description == "" && !undescribed[name+"."+field] {
				t.Errorf("%s.%s has no description", name, field)
			}
		}
	}
}
