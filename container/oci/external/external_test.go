package external

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"knarr.dev/knarr/container/oci"
)

// The configuration says what the spec says, and no more.
func TestBundle(t *testing.T) {
	host, err := oci.NewLauncher("/b")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	base := func(change func(*oci.Spec)) *oci.Spec {
		s := &oci.Spec{
			ID: "c", Args: []string{"sh"}, Cwd: "/", Hostname: "pod", SharedMemory: "/run/shm",
			Namespaces: oci.Namespaces{Network: "/run/net", UTS: "/run/uts", PID: oci.Private, Cgroup: true},
		}
		if change != nil {
			change(s)
		}
		return s
	}
	for _, c := range []struct {
		name, program string
		spec          *oci.Spec
		has, lacks    []string
	}{
		{"plain", "runc", base(nil), []string{
			`"args":["sh"]`, `"hostname":"pod"`, `{"type":"network","path":"/run/net"}`, `{"type":"pid"}`, `{"type":"cgroup"}`,
			`"cgroupsPath":"/g/c"`, `{"allow":false,"access":"rwm"}`, `"source":"/run/shm"`, `"rootfsPropagation":"rprivate"`,
		}, []string{`"type":"ipc"`, `"seccomp"`, `"terminal"`}},
		{"the host's", "runc", base(func(s *oci.Spec) { s.Namespaces = oci.Namespaces{} }), nil, []string{`"type":"network"`, `"type":"pid"`, `"hostname"`}},
		{"privileged", "runc", base(func(s *oci.Spec) { s.Privileged = true }), []string{`{"allow":true,"access":"rwm"}`}, []string{`"ro"`}},
		{"placed by us", "crun", base(nil), nil, []string{"cgroupsPath", "resources"}},
		{"shared", "runc", base(func(s *oci.Spec) {
			s.Mounts = []oci.Mount{{Source: "/v", Target: "/vol", Propagation: unix.MS_SHARED}, {Source: "/w", Target: "/w", Propagation: unix.MS_SLAVE, RecursiveReadOnly: true}}
		}), []string{`"rootfsPropagation":"rshared"`, `"source":"/b/volume-0","options":["rbind","rshared","rw"]`, `"source":"/w","options":["rbind","rslave","rro"]`}, nil},
		{"own /sys", "runc", base(func(s *oci.Spec) { s.Mounts = []oci.Mount{{Source: "/sys", Target: "/sys/"}} }), nil, []string{`"type":"sysfs"`, `"type":"cgroup","source"`}},
	} {
		r := New(c.name, Config{Path: c.program}, "/state", "/b", host)
		data, err := json.Marshal(r.describe(c.spec, "/b", "/g/c"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.has {
			if !strings.Contains(string(data), want) {
				t.Errorf("%s: no %s in %s", c.name, want, data)
			}
		}
		for _, no := range c.lacks {
			if strings.Contains(string(data), no) {
				t.Errorf("%s: %s in %s", c.name, no, data)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		conf Config
		why  string
	}{
		{Config{Path: "runc"}, ""},
		{Config{Path: "/opt/youki", Kind: "runc", Root: "/run/youki"}, ""},
		{Config{}, "path"},
		{Config{Path: "runc", Kind: "kata"}, "kind"},
		{Config{Path: "runc", Root: "run"}, "root"},
	} {
		if err := c.conf.Check(); (err == nil) != (c.why == "") || err != nil && !strings.HasPrefix(err.Error(), c.why) {
			t.Errorf("%+v: %v", c.conf, err)
		}
	}
}

func FuzzLastError(f *testing.F) {
	f.Add(`{"level":"info","msg":"x"}` + "\n" + `{"level":"error","msg":"no such file\n"}` + "\nplain text\n")
	file := filepath.Join(f.TempDir(), "log")
	f.Fuzz(func(t *testing.T, log string) {
		if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if msg := lastError(file); strings.TrimSpace(msg) != msg {
			t.Errorf("%q", msg)
		}
	})
}
