package images

import (
	"strings"
	"testing"
)

func TestVerificationIsValidated(t *testing.T) {
	for _, row := range []struct {
		policy, list, want string // list by commas; want: part of the error
	}{
		{"", "", ""},
		{"AlwaysVerify", "", ""},
		{"Sometimes", "", `imagePullCredentialsVerificationPolicy "Sometimes": want NeverVerify`},
		{"NeverVerify", "a.example.com/*", "used by the imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages alone"},
		{"NeverVerifyAllowlistedImages", "", "needs a preloadedImagesVerificationAllowlist"},
		{"NeverVerifyAllowlistedImages", "busybox,a.example.com/x,a.example.com:5000/*,a.example.com/team/*", ""},
		{"NeverVerifyAllowlistedImages", "busybox,busybox", "[1]: \"busybox\" is there twice"},
		{"NeverVerifyAllowlistedImages", "a.example.com/x:1", "without tag and digest"},
		{"NeverVerifyAllowlistedImages", "a.example.com/x@sha256:1", "without tag and digest"},
		{"NeverVerifyAllowlistedImages", "a.example.com/x*", "alone behind the last /"},
		{"NeverVerifyAllowlistedImages", "*", "alone behind the last /"},
		{"NeverVerifyAllowlistedImages", "/*", "want the name of an image"},
		{"NeverVerifyAllowlistedImages", " busybox", "want the name of an image"},
		{"NeverVerifyAllowlistedImages", "*.example.com/*", "alone behind the last /"},
	} {
		v := Verification{Policy: row.policy}
		if row.list != "" {
			v.Allowlist = strings.Split(row.list, ",")
		}
		if err := v.Validate(); row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%+v: %v, want %q", v, err, row.want)
		}
	}
}

func TestNamesAreListed(t *testing.T) {
	for pattern, names := range map[string]struct{ in, out string }{
		"docker.io/*":                 {"busybox docker.io/library/busybox docker.io/team/app index.docker.io/library/busybox", "quay.io/busybox docker.io.example.com/x"},
		"busybox":                     {"busybox", "busyboxes team/busybox quay.io/busybox"},
		"registry.example.com/team/*": {"registry.example.com/team/app registry.example.com/team/sub/app", "registry.example.com/team registry.example.com/teams/app registry.example.com:5000/team/app"},
	} {
		v := Verification{Policy: NeverVerifyAllowlistedImages, Allowlist: []string{pattern}}
		for list, want := range map[string]bool{names.in: true, names.out: false} {
			for _, name := range strings.Fields(list) {
				if v.listed(name) != want || v.needed(name, false) == want || !v.needed(name, true) {
					t.Errorf("%s in %s: %v, want %v", name, pattern, !want, want)
				}
			}
		}
	}
}

func TestRepositories(t *testing.T) {
	for image, want := range map[string]string{
		"hello-world:latest@sha256:91fb": "hello-world", "busybox": "busybox", "host:5000/a": "host:5000/a", "host:5000/a:1": "host:5000/a", "a.b/c@sha256:1": "a.b/c", "sha256:1": "sha256",
	} {
		if got := repositoryOf(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}
