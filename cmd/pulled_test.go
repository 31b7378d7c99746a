package cmd

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestPulledConfig(t *testing.T) {
	for text, want := range map[string]string{
		"{}": "",
		"{imagePullCredentialsVerificationPolicy: AlwaysVerify}":                                                                  "",
		"{imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages, preloadedImagesVerificationAllowlist: [a.b:5/*]}": "",
		"{imagePullCredentialsVerificationPolicy: Sometimes}":                                                                     `node: Forbidden: imagePullCredentialsVerificationPolicy "Sometimes"`,
		"{imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages, preloadedImagesVerificationAllowlist: [a.b/c:1]}": "node: Forbidden: preloadedImagesVerificationAllowlist[0]",
	} {
		cfg := defaultConfig()
		cfg.Node.Name, cfg.Node.IP = "n", "192.0.2.1"
		if err := yaml.UnmarshalStrict([]byte(text), &cfg.Node); err != nil {
			t.Fatal(err)
		}
		if err := cfg.validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
