package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"knarr.dev/knarr/container/oci"
)

// What hooks read: where the tree is, their own description, nobody else's secrets.
// What executors read of it is tested with these, in package external.
func TestWrite(t *testing.T) {
	host, err := oci.NewLauncher("/b")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	s := &oci.Spec{
		ID: "c", Args: []string{"sh"}, Env: []string{"A=b"}, Annotations: map[string]string{"a": "b"},
		Hooks: &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true", Args: []string{"true", "x"}}}},
	}
	dir := t.TempDir()
	if err := Of(s, host, dir, "/run/root", "").Write(dir, 7); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got specs.Spec
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Version != "1.0.2" || got.Root.Path != "/run/root" || !reflect.DeepEqual(got.Hooks, s.Hooks) || !reflect.DeepEqual(got.Annotations, s.Annotations) || got.Process.Env[0] != "A=b" {
		t.Errorf("written is %s", data)
	}
	if got.Linux.CgroupsPath != "" || got.Linux.Resources != nil {
		t.Errorf("without a group: %s", data)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 7 {
		t.Errorf("the file is %v (%v)", st.Mode(), err)
	}
	if err := Of(s, host, dir, "/run/root", "").Write(filepath.Join(dir, "missing"), 0); err == nil {
		t.Error("written into a folder that is not there")
	}
}
