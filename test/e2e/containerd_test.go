package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"knarr.dev/knarr/cri"
)

// containerdConfig is for a containerd of the test's own. Lower OOM scores than its
// own need CAP_SYS_RESOURCE, which a machine may lack.
const containerdConfig = `version = 2
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[4]q
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = %[5]q
    bin_dir = %[6]q
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %[7]q
`

// startContainerd runs Debian's containerd on a socket of the test's own and returns
// the flags that have knarr use it.
func startContainerd(t *testing.T, registry string) []string {
	t.Helper()
	for _, program := range []string{"containerd", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: apt-get install containerd runc", program)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces, mounts and control groups")
	}
	sweepContainerd(t)
	// Short: the path of a socket has 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "knarr-cd-")
	if err != nil {
		t.Fatal(err)
	}
	noteNamespaces(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "owner"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanContainerd(t, dir) })
	at := func(name string) string { return filepath.Join(dir, name) }
	hosts := filepath.Join(dir, "certs", registry)
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(hosts, "hosts.toml"): fmt.Sprintf("server = %q\n", "http://"+registry),
		at("config.toml"):                  fmt.Sprintf(containerdConfig, at("root"), at("state"), at("sock"), registry+"/tools:1", at("net.d"), at("bin"), at("certs")),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(at("log"))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("containerd", "--config", at("config.toml"))
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(at("log"))
			t.Logf("containerd:\n%s", b)
		}
		log.Close()
	})
	conn, err := cri.Dial(at("sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for end := time.Now().Add(30 * time.Second); ; {
		_, err := conn.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("containerd does not answer: %v", err)
		}
	}
	return []string{"--container-runtime-endpoint", "unix://" + at("sock"), "--cni-conf-dir", at("net.d"), "--cni-bin-dir", at("bin")}
}

// The agent runs pods by a runtime that is not knarr's, on knarr's network.
func TestContainerd(t *testing.T) {
	registry, err := images()
	if err != nil {
		t.Fatal(err)
	}
	flags := startContainerd(t, registry)
	c := startWith(t, func(dir string) string { return filepath.Join(dir, "data") }, flags...)
	if got := c.must("get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}"); !strings.HasPrefix(got, "containerd://") {
		t.Fatalf("runtime: %s", got)
	}
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {word: swordfish}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  containers:
  - name: c
    image: REGISTRY/hello:v1
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  initContainers:
  - {name: first, image: REGISTRY/tools:1, command: [sh, -c, "echo ready > /shared/first"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: c
    image: REGISTRY/tools:1
    env: [{name: WORD, valueFrom: {configMapKeyRef: {name: words, key: word}}}]
    command: [sh, -c, "echo hello $WORD; cat /shared/first; exec sleep 1000000"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes: [{name: shared, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers: [{name: c, image: REGISTRY/tools:1, command: [sh, -c, "exit 3"]}]
`)
	server := c.awaitPod("server", "ready", ready)
	c.awaitPod("client", "ready", ready)
	ended := c.awaitPod("once", "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if st := ended.Status.ContainerStatuses[0].State.Terminated; st == nil || st.ExitCode != 3 {
		t.Errorf("exit: %+v", ended.Status.ContainerStatuses)
	}
	if out := c.must("logs", "client", "-c", "c"); out != "hello swordfish\nready\n" {
		t.Errorf("log: %q", out)
	}
	if out := c.must("exec", "client", "-c", "c", "--", "wget", "-qO-", "http://"+server.Status.PodIP+":8080/"); !strings.Contains(out, "v1") {
		t.Errorf("pod to pod: %q", out)
	}
	c.must("expose", "pod", "server", "--port=80", "--target-port=8080")
	ip := c.must("get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	c.eventually("the service answers on the node", func() error {
		resp, err := http.Get("http://" + ip + "/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	c.eventually("the service answers in a pod", func() error {
		out, err := c.kubectl("exec", "client", "-c", "c", "--", "wget", "-qO-", "http://"+ip+":80/") // without -T, which crashes static busybox
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	c.eventually("kubectl top", func() error {
		out, err := c.kubectl("top", "pod", "server", "--no-headers")
		if err != nil || !strings.HasPrefix(out, "server") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	// Containers go on while knarr is away.
	before := c.must("get", "pod", "server", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	c.kill()
	c.up()
	c.must("wait", "--for=condition=Ready", "pod/server", "--timeout=30s")
	if after := c.must("get", "pod", "server", "-o", "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}"); after != before+" 0" {
		t.Errorf("container %s became %s", before, after)
	}
	c.must("delete", "pod", "--all", "--grace-period=1", "--timeout=60s")
}
