package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// refuse runs "knarr up" with arguments that cannot work: it must end by itself
// with a failure and say why in one line.
func refuse(t *testing.T, as *syscall.Credential, want string, args ...string) {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, append([]string{"up"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err == nil {
		t.Fatalf("knarr up %v succeeded:\n%s", args, text)
	}
	if !strings.Contains(text, want) {
		t.Errorf("knarr up %v said %q, want it to contain %q", args, text, want)
	}
	if strings.Count(text, "\n") > 0 {
		t.Errorf("knarr up %v said more than one line:\n%s", args, text)
	}
}

func TestStartRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small file system")
	}
	dir := t.TempDir()
	place := func(name string) []string {
		return []string{"--name", "e2er", "--data-dir", filepath.Join(dir, name, "data"), "--run-dir", filepath.Join(dir, name, "run"), "--kubeconfig", "",
			"--listen", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--node-listen", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--pod-cidr", "10.189.0.0/16", "--service-cidr", "10.188.0.0/16"}
	}
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("not root", func(t *testing.T) {
		// Whoever is not root may not be able to read the checkout: use a copy.
		bin, err := binary()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := os.MkdirTemp("/tmp", "knarr-e2e-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(pub)
		if err := os.Chmod(pub, 0o755); err != nil {
			t.Fatal(err)
		}
		own := filepath.Join(pub, "knarr")
		if err := exec.Command("cp", bin, own).Run(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(own, append([]string{"up"}, place("nobody")...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "must run as root") {
			t.Errorf("as nobody: %v, %s", err, out)
		}
	})
	t.Run("port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		refuse(t, nil, "api.listen: listen tcp "+l.Addr().String()+": bind: address already in use", append(place("port"), "--listen", l.Addr().String())...)
	})
	t.Run("bad flags", func(t *testing.T) {
		refuse(t, nil, `network.podCIDR: Invalid value: "nonsense"`, append(place("flag"), "--pod-cidr", "nonsense")...)
		refuse(t, nil, `name: Invalid value: "Not-A-Name"`, append(place("flag"), "--name", "Not-A-Name")...)
		refuse(t, nil, `unknown flag: --nonsense`, append(place("flag"), "--nonsense")...)
	})
	t.Run("bad configuration", func(t *testing.T) {
		refuse(t, nil, `unknown field "machines"`, append(place("config"), "--config", file("unknown.yaml", "machines: 3\n"))...)
		refuse(t, nil, "cannot unmarshal string into Go struct field", append(place("config"), "--config", file("type.yaml", "node: {maxPods: many}\n"))...)
		refuse(t, nil, "broken.yaml", append(place("config"), "--config", file("broken.yaml", "a: [1\nb"))...)
		refuse(t, nil, "no such file", append(place("config"), "--config", filepath.Join(dir, "absent.yaml"))...)
	})
	t.Run("broken kubeconfig", func(t *testing.T) {
		refuse(t, nil, "mend the file", append(place("kubeconfig"), "--kubeconfig", file("broken-kubeconfig", "{{{"))...)
		downAll(t, place("kubeconfig"))
	})
	t.Run("full disk", func(t *testing.T) {
		small := filepath.Join(dir, "small")
		if err := os.Mkdir(small, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(small, unix.MNT_DETACH)
		refuse(t, nil, "no space left on device", append(place("full"), "--data-dir", filepath.Join(small, "data"))...)
	})
}

// downAll removes what a refused start may have made.
func downAll(t *testing.T, place []string) {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(bin, append([]string{"down"}, place[:6]...)...).CombinedOutput(); err != nil {
		t.Errorf("down after a refused start: %v\n%s", err, out)
	}
}

func TestSecondInstanceOnOneDataDirectory(t *testing.T) {
	c := start(t)
	args := []string{"--name", "e2ex", "--data-dir", filepath.Join(c.dir, "data"), "--run-dir", filepath.Join(c.dir, "run2"), "--kubeconfig", "",
		"--listen", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--node-listen", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--pod-cidr", "10.189.0.0/16", "--service-cidr", "10.188.0.0/16"}
	refuse(t, nil, "is in use by another knarr", args...)
	if out := c.must("get", "namespaces"); !strings.Contains(out, "kube-system") {
		t.Errorf("the first instance suffered:\n%s", out)
	}
}

// Wrong manifests are refused in Kubernetes' own words, with the path of the field.
func TestManifestsRefused(t *testing.T) {
	c := start(t)
	for _, m := range []struct{ name, manifest, want string }{
		{"unknown field", `{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, dta: {}}`, `unknown field "dta"`},
		{"wrong type", `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: notalist}}`, `cannot unmarshal string into Go struct field`},
		{"bad name", `{apiVersion: v1, kind: ConfigMap, metadata: {name: Not_Good}}`, `metadata.name: Invalid value: "Not_Good": a lowercase RFC 1123 subdomain must consist of`},
		{"bad label", `{apiVersion: v1, kind: ConfigMap, metadata: {name: a, labels: {x: "a b"}}}`, `metadata.labels: Invalid value: "a b": a valid label must be an empty string or consist of`},
		{"no containers", `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: []}}`, `spec.containers: Required value`},
		{"no image", `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c}]}}`, `spec.containers[0].image: Required value`},
		{"bad quantity", `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i, resources: {limits: {cpu: much}}}]}}`, `quantities must match the regular expression`},
		{"bad port", `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i, ports: [{containerPort: 99999}]}]}}`, `spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive`},
		{"twice the name", `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i}, {name: c, image: i}]}}`, `spec.containers[1].name: Duplicate value: "c"`},
		{"selector", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}`, "`selector` does not match template `labels`"},
		{"service without ports", `{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {a: b}}}`, `spec.ports: Required value`},
		{"service address", `{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 1.2.3.4, ports: [{port: 80}]}}`, `failed to allocate IP 1.2.3.4: the provided network does not match the current range`},
		{"absent namespace", `{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: nowhere}}`, `namespaces "nowhere" not found`},
	} {
		t.Run(m.name, func(t *testing.T) {
			out, err := c.kubectlInput(m.manifest, "create", "-f", "-")
			if err == nil || !strings.Contains(out, m.want) {
				t.Errorf("%v: %s\nwant %s", err, out, m.want)
			}
		})
	}
}
