package cmd

import (
	"os"
	"path/filepath"
	"testing"

	"knarr.dev/knarr/agent/userns"
)

func TestUsersOfPods(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub")
	if err := os.WriteFile(file, []byte("kubelet:655360:1310720\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		nodes int
		set   UserNamespaces
		sub   string
		want  userns.Slots
	}{
		"default":                 {1, UserNamespaces{}, "", userns.Slots{First: 65536, PerPod: 65536, Pods: 110}},
		"set":                     {1, UserNamespaces{IDsPerPod: 131072, FirstID: 1 << 30}, "", userns.Slots{First: 1 << 30, PerPod: 131072, Pods: 110}},
		"third node":              {1, UserNamespaces{Share: 2, Shares: 3}, "", userns.Slots{First: 65536 + 2*110*65536, PerPod: 65536, Pods: 110}},
		"subordinate":             {1, UserNamespaces{}, file, userns.Slots{First: 655360, PerPod: 65536, Pods: 20}},
		"subordinate, first of 2": {2, UserNamespaces{}, file, userns.Slots{First: 655360, PerPod: 65536, Pods: 10}},
		"subordinate, second":     {1, UserNamespaces{Share: 1, Shares: 2}, file, userns.Slots{First: 655360 + 655360, PerPod: 65536, Pods: 10}},
	} {
		cfg := defaultConfig()
		cfg.Nodes, cfg.Node.UserNamespaces = tc.nodes, tc.set
		if got, err := cfg.userSlots(tc.sub, tc.sub); err != nil || got != tc.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tc.want)
		}
	}
	cfg := defaultConfig()
	cfg.Node.UserNamespaces.IDsPerPod = 1000
	if err := cfg.validate(); err == nil {
		t.Error("1000 users a pod were accepted")
	}
}
