package cmd

import (
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/agent/imagegc"
)

func TestImageGCConfig(t *testing.T) {
	for text, want := range map[string]imagegc.Config{
		"{}": imagegc.Default(),
		"{imageGCHighThresholdPercent: 70, imageGCLowThresholdPercent: 0, imageMinimumGCAge: 0s, imageMaximumGCAge: 168h}": {High: 70, MaxAge: 168 * time.Hour},
	} {
		var c ImageGCConfig
		if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
			t.Fatal(err)
		}
		if got, err := c.parse(); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"{imageGCHighThresholdPercent: 60}": "imageGCLowThresholdPercent", "{imageMinimumGCAge: soon}": "imageMinimumGCAge: ", "{imageMaximumGCAge: 1m}": "imageMaximumGCAge must be",
	} {
		var c ImageGCConfig
		if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
			t.Fatal(err)
		}
		if _, err := c.parse(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
