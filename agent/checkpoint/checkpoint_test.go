package checkpoint

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b.json")
	got := map[string]int{"before": 1}
	if err := Load(path, &got); err != nil || got["before"] != 1 {
		t.Errorf("a file that is not there: %v, %v", got, err)
	}
	for i := range 2 {
		if err := Save(path, map[string]int{"n": i}); err != nil {
			t.Fatal(err)
		}
		got = nil
		if err := Load(path, &got); err != nil || got["n"] != i || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%v", left)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if Load(path, &got) == nil {
		t.Error("half a file was accepted")
	}
	if Save(path, func() {}) == nil {
		t.Error("a function was saved")
	}
}
