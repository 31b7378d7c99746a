package auth_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"knarr.dev/knarr/apiserver/auth"
)

// TestFormerKeys: tokens of a former key hold as long as its file is there.
func TestFormerKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sa.key")
	open := func() *auth.Tokens {
		t.Helper()
		tokens, err := auth.OpenTokens(file, "https://i", time.Now)
		if err != nil {
			t.Fatal(err)
		}
		return tokens
	}
	token, _, err := open().Issue(auth.Bound{Namespace: "x", ServiceAccount: auth.NamedObject{Name: "y"}}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	both := open()
	if user, _, err := both.Check(token, nil); err != nil || user.Username != "system:serviceaccount:x:y" {
		t.Errorf("with both keys: %+v, %v", user, err)
	}
	if keys := both.KeySet().Keys; len(keys) != 2 || keys[0].KeyID != both.KeyID() || keys[0].KeyID == keys[1].KeyID {
		t.Errorf("key set %+v", keys)
	}
	if err := os.Remove(file + ".1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open().Check(token, nil); err == nil {
		t.Error("a key that was removed still verifies")
	}
}
