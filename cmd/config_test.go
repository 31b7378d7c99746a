package cmd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"knarr.dev/knarr/kit/pki"
)

func TestFirstNodeCIDR(t *testing.T) {
	for in, want := range map[string]string{
		"10.244.0.0/16": "10.244.0.0/24", "10.0.0.0/8": "10.0.0.0/24", "10.1.2.0/25": "10.1.2.0/25", "nonsense": "nonsense",
	} {
		if got := firstNodeCIDR(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestConfigNamesEveryMistake(t *testing.T) {
	c := defaultConfig()
	if err := c.validate(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	c.Name, c.DataDir, c.LogLevel, c.API.Listen = "a-b", "relative", "loud", "nowhere"
	c.Node.IP, c.Node.MaxPods, c.Network.ServiceCIDR, c.Network.NodePorts = "x", 0, "fd00::/64", "9-1"
	err := c.validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, f := range []string{"name", "dataDir", "logLevel", "api.listen", "node.ip", "node.maxPods", "network.serviceCIDR", "network.nodePorts"} {
		if !strings.Contains(err.Error(), f+": Invalid value") {
			t.Errorf("%s is not named in %v", f, err)
		}
	}
}

func TestConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if _, err := loadConfig(file, true); err == nil {
		t.Error("a missing file that was asked for is no error")
	}
	if err := os.WriteFile(file, []byte("node: {maxPods: 7}\nregistries: {example.com: {plainHTTP: true}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(file, true)
	if err != nil || c.Node.MaxPods != 7 || !c.Registries["example.com"].PlainHTTP || c.Network.Domain != "cluster.local" {
		t.Errorf("%+v, %v", c, err)
	}
}

// Access is merged into a kubeconfig and taken out again; what others wrote stays.
func TestKubeconfigMerge(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.Open(filepath.Join(dir, "pki"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := ca.Client("admin")
	if err != nil {
		t.Fatal(err)
	}
	merged := filepath.Join(dir, "home", "config")
	for _, name := range []string{"one", "two"} {
		if err := writeKubeconfig(filepath.Join(dir, name), merged, name, "https://127.0.0.1:1", ca, admin); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeAccess(merged, "two"); err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.LoadFromFile(merged)
	if err != nil || cfg.Contexts["one"] == nil || cfg.Contexts["two"] != nil || cfg.CurrentContext != "" {
		t.Errorf("%+v, %v", cfg, err)
	}
	if info, err := os.Stat(merged); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// The users of pods pass through the one folder, on the way to their files, and never
// through the other.
func TestMakeDirs(t *testing.T) {
	c := defaultConfig()
	c.DataDir, c.RunDir = filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(c.RunDir, 0o700); err != nil { // by an earlier version
		t.Fatal(err)
	}
	if err := c.makeDirs(); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]os.FileMode{c.DataDir: 0o700, c.RunDir: 0o711} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, not %v (%v)", dir, st.Mode().Perm(), want, err)
		}
	}
}
