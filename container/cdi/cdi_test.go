package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const vendorSpec = `cdiVersion: 0.6.0
kind: vendor.com/net
containerEdits:
  env: ["ALL=1"]
devices:
- name: a
  containerEdits:
    env: ["DEV=a"]
    deviceNodes: [{path: /dev/a, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /usr/lib/vendor, containerPath: /usr/lib/vendor, options: [ro, nosuid]}]
    additionalGids: [44]
    hooks: [{hookName: createContainer, path: /usr/bin/vendor, args: [vendor, update, --folder, /lib], env: [A=b], timeout: 5}]
- name: b
  containerEdits: {env: ["DEV=b"]}
`

func TestResolve(t *testing.T) {
	low, high := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(low, "vendor.yaml", vendorSpec)
	write(low, "broken.json", "{")
	write(high, "other.json", `{"cdiVersion":"0.6.0","kind":"vendor.com/net","devices":[{"name":"b","containerEdits":{"env":["DEV=newer"]}},{"name":"twice"}]}`)
	write(high, "third.json", `{"cdiVersion":"0.6.0","kind":"vendor.com/net","devices":[{"name":"twice"}]}`)
	five := 5
	dirs := []string{low, high, filepath.Join(low, "missing")}
	for _, c := range []struct {
		names []string
		want  Edits
		err   string
	}{
		{names: []string{"vendor.com/net=a"}, want: Edits{
			Env: []string{"ALL=1", "DEV=a"}, DeviceNodes: []DeviceNode{{"/dev/a", "/dev/null", "rw"}},
			Mounts: []Mount{{"/usr/lib/vendor", "/usr/lib/vendor", []string{"ro", "nosuid"}}}, AdditionalGIDs: []uint32{44},
			Hooks: []Hook{{HookName: "createContainer", Path: "/usr/bin/vendor", Args: []string{"vendor", "update", "--folder", "/lib"}, Env: []string{"A=b"}, Timeout: &five}},
		}},
		{names: []string{"vendor.com/net=b"}, want: Edits{Env: []string{"DEV=newer"}}},
		{names: []string{"vendor.com/net=c"}, err: "unknown CDI device vendor.com/net=c"},
		{names: []string{"vendor.com/net=twice"}, err: "in two specifications"},
		{names: []string{"net=a"}, err: "want vendor/class=name"},
		{names: []string{"vendor.com/net"}, err: "want vendor/class=name"},
	} {
		got, err := Resolve(dirs, c.names)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v: %v, not %q", c.names, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %+v, %v", c.names, got, err)
		}
	}
	if _, err := Resolve(dirs, []string{"vendor.com/net=c"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown device answered %v", err)
	}
}
