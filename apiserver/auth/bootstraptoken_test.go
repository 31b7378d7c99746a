package auth

import (
	"strings"
	"testing"
)

func TestBootstrapTokenForm(t *testing.T) {
	for token, want := range map[string]bool{
		"abcdef.0123456789abcdef": true,
		"abcdef0123456789abcdef":  false,
		"abcdef.0123456789abcde":  false,
		"abcdeF.0123456789abcdef": false,
		"abcde.00123456789abcdef": false,
		"abcdef.012345678.abcdef": false,
		"":                        false,
		".":                       false,
	} {
		if id, secret, ok := splitBootstrapToken(token); ok != want || ok && id+"."+secret != token {
			t.Errorf("%q: %q, %q, %v", token, id, secret, ok)
		}
	}
	for name, want := range map[string]bool{
		"x": true, "a:b-c:0": true, "": false, "-": false, "a-": false, "a:": false, "A": false, "a_b": false, "ä": false,
		strings.Repeat("a", 256): true, strings.Repeat("a", 257): false,
	} {
		if got := isBootstrapGroup("system:bootstrappers:" + name); got != want {
			t.Errorf("group %q: %v", name, got)
		}
	}
	if isBootstrapGroup("system:masters") || isBootstrapGroup("system:bootstrappers") {
		t.Error("groups of other kinds are permitted")
	}
}
