package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// One cluster, many things that users do with pods.
func TestPodFeatures(t *testing.T) {
	c := start(t)
	for _, sub := range []struct {
		name string
		test func(*testing.T, *cluster)
	}{
		{"environment and volumes", environmentAndVolumes},
		{"init containers run in order before the others", initContainers},
		{"a failing liveness probe restarts", liveness},
		{"attach and copy", attachAndCopy},
		{"service account token", token},
	} {
		t.Run(sub.name, func(t *testing.T) {
			own := *c
			own.t = t
			sub.test(t, &own)
		})
	}
}

func environmentAndVolumes(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, file.txt: "one\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {password: swordfish}
---
apiVersion: v1
kind: Pod
metadata: {name: volumes, labels: {tier: front}}
spec:
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000}
  containers:
  - name: c
    image: REGISTRY/tools:1
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: hidden, key: password}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: BOTH, value: "$(POD)-$(COLOR)"}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    resources: {limits: {memory: 64Mi, cpu: 100m}}
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: empty, mountPath: /empty}
    - {name: memory, mountPath: /memory}
    - {name: info, mountPath: /info}
    - {name: all, mountPath: /all}
  volumes:
  - {name: config, configMap: {name: settings}}
  - {name: secret, secret: {secretName: hidden, defaultMode: 0440}}
  - {name: empty, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - name: all
    projected:
      sources:
      - configMap: {name: settings, items: [{key: color, path: deep/color}]}
      - secret: {name: hidden}
`)
	c.awaitPod("volumes", "ready", ready)
	for command, want := range map[string]string{
		"echo $COLOR $PASSWORD $BOTH $LIMIT":                                     "blue swordfish volumes-blue 67108864",
		"id -u; id -g; id -G":                                                    "1000\n3000\n3000 2000",
		"cat /config/file.txt /secret/password":                                  "one\nswordfish",
		"cat /info/labels":                                                       `tier="front"`,
		"cat /all/deep/color /all/password":                                      "blueswordfish",
		"touch /empty/a && stat -c %g /empty/a":                                  "2000",
		"dd if=/dev/zero of=/memory/x bs=1M count=2 2>&1 | grep -o 'No space.*'": "No space left on device",
		"touch /secret/a 2>&1 | grep -o 'Read-only.*'":                           "Read-only file system",
	} {
		if out, err := c.kubectl("exec", "volumes", "--", "sh", "-c", command); err != nil || strings.TrimSpace(out) != want {
			t.Errorf("%s\nprinted %q (%v), want %q", command, out, err, want)
		}
	}
	if b, _ := os.ReadFile("/proc/sys/kernel/osrelease"); len(b) == 0 {
		t.Error("no kernel release")
	}
	c.must("patch", "configmap", "settings", "-p", `{"data":{"file.txt":"two\n"}}`)
	c.must("exec", "volumes", "--", "sh", "-c", "for i in $(seq 100); do grep -q two /config/file.txt && exit 0; sleep 0.1; done; exit 1")
}

func initContainers(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: inits}
spec:
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: a, image: REGISTRY/tools:1, command: [sh, -c, "echo a >>/v/f"], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: side, image: REGISTRY/tools:1, restartPolicy: Always, command: [sh, -c, "echo side >>/v/f; sleep 100000"], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: b, image: REGISTRY/tools:1, command: [sh, -c, "echo b >>/v/f"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: c, image: REGISTRY/tools:1, command: [sh, -c, "cat /v/f; sleep 100000"], volumeMounts: [{name: v, mountPath: /v}]}
`)
	c.awaitPod("inits", "ready", ready)
	if out := c.must("exec", "inits", "-c", "c", "--", "cat", "/v/f"); out != "a\nside\nb\n" {
		t.Errorf("order: %q", out)
	}
}

func liveness(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ill}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: REGISTRY/tools:1
    command: [sh, -c, "touch /tmp/well; sleep 1; rm /tmp/well; sleep 100000"]
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1}
`)
	c.awaitPod("ill", "restarted", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	if out := c.must("get", "events", "--field-selector", "involvedObject.name=ill,reason=Unhealthy", "-o", "jsonpath={.items[*].message}"); !strings.Contains(out, "Liveness probe failed: cat: can't open '/tmp/well': No such file or directory") {
		t.Errorf("event: %s", out)
	}
}

func attachAndCopy(t *testing.T, c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: echo}
spec:
  containers: [{name: c, image: REGISTRY/tools:1, stdin: true, stdinOnce: true, command: [sh, -c, "read x; echo got $x"]}]
  restartPolicy: Never
`)
	c.awaitPod("echo", "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	if out, err := c.kubectlInput("word\n", "attach", "-i", "echo"); err != nil || !strings.Contains(out, "got word") {
		t.Errorf("attach: %v, %q", err, out)
	}
	c.awaitPod("echo", "succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if out := c.must("logs", "echo"); out != "got word\n" {
		t.Errorf("log: %q", out)
	}
}

func token(t *testing.T, c *cluster) {
	c.must("create", "serviceaccount", "robot")
	c.must("create", "rolebinding", "robot-views", "--clusterrole=view", "--serviceaccount=default:robot")
	tok := strings.TrimSpace(c.must("create", "token", "robot"))
	server := c.config.Host
	ca := filepath.Join(c.dir, "ca.crt")
	if err := os.WriteFile(ca, c.config.CAData, 0o600); err != nil {
		t.Fatal(err)
	}
	as := func(args ...string) (string, error) {
		return c.kubectl(append([]string{"--kubeconfig=/dev/null", "--server=" + server, "--certificate-authority=" + ca, "--token=" + tok}, args...)...)
	}
	if out, err := as("get", "pods"); err != nil {
		t.Errorf("view by token: %v %s", err, out)
	}
	if out, err := as("delete", "pod", "inits"); err == nil || !strings.Contains(out, `pods "inits" is forbidden: User "system:serviceaccount:default:robot" cannot delete resource "pods" in API group "" in the namespace "default"`) {
		t.Errorf("delete by a viewer: %v %s", err, out)
	}
	if out, err := c.kubectl("auth", "can-i", "create", "deployments", "--as=system:serviceaccount:default:robot"); err == nil || strings.TrimSpace(out) != "no" {
		t.Errorf("can-i: %v, %s", err, out)
	}
}

// Services of every kind that this machine's processes and pods can reach.
func TestServices(t *testing.T) {
	c := start(t)
	c.hello()
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: port}
spec: {type: NodePort, selector: {app: hello}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {sessionAffinity: ClientIP, selector: {app: hello}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: hello}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
`)
	port, err := c.client.CoreV1().Services("default").Get(t.Context(), "port", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := c.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", nodes.Items[0].Status.Addresses[0].Address} {
		c.eventually("node port on "+host, func() error {
			b, err := get(t.Context(), fmt.Sprintf("http://%s:%d", host, port.Spec.Ports[0].NodePort))
			if err != nil || !strings.HasPrefix(b, "hello v1") {
				return fmt.Errorf("%q, %v", b, err)
			}
			return nil
		})
	}
	seen := map[string]bool{}
	for range 20 {
		seen[c.must("exec", "client", "--", "wget", "-qO-", "http://sticky")] = true
	}
	if len(seen) != 1 {
		t.Errorf("one client with ClientIP affinity was answered by %v", seen)
	}
	if out := c.must("exec", "client", "--", "nslookup", "headless.default.svc.cluster.local"); strings.Count(out, "Address") < 3 { // the server's own and two
		t.Errorf("headless service:\n%s", out)
	}
	if out, err := c.kubectl("exec", "client", "--", "wget", "-qO-", "http://nobody"); err == nil || !strings.Contains(out, "Connection refused") {
		t.Errorf("a service without endpoints: %v, %s", err, out)
	}
	if out, err := c.kubectl("exec", "client", "--", "nslookup", "absent.default.svc.cluster.local"); err == nil || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("an absent service: %v, %s", err, out)
	}
	c.must("scale", "deployment/hello", "--replicas=0")
	c.eventually("service without pods refuses", func() error {
		if out, err := c.kubectl("exec", "client", "--", "wget", "-qO-", "http://hello"); err == nil || !strings.Contains(out, "refused") {
			return fmt.Errorf("%v, %s", err, out)
		}
		return nil
	})
}

// kubectl's everyday verbs work on a Deployment, and deleting a namespace removes
// all that is in it.
func TestKubectl(t *testing.T) {
	c := start(t)
	c.must("create", "namespace", "work")
	k := func(args ...string) string { return c.must(append([]string{"-n", "work"}, args...)...) }
	k("create", "deployment", "web", "--image="+c.registry+"/hello:v1", "--replicas=2")
	k("rollout", "status", "deployment/web", "--timeout=60s")
	k("expose", "deployment", "web", "--port=80", "--target-port=8080")
	k("scale", "deployment", "web", "--replicas=3")
	k("wait", "--for=jsonpath={.status.readyReplicas}=3", "deployment/web", "--timeout=60s")
	k("label", "deployment", "web", "team=blue")
	k("annotate", "deployment", "web", "note=x")
	k("patch", "deployment", "web", "--type=json", "-p", `[{"op":"replace","path":"/spec/replicas","value":1}]`)
	k("rollout", "pause", "deployment/web")
	k("set", "env", "deployment/web", "A=b")
	k("rollout", "resume", "deployment/web")
	k("rollout", "restart", "deployment/web")
	k("rollout", "status", "deployment/web", "--timeout=60s")
	for _, want := range []string{"NewReplicaSetAvailable", "ScalingReplicaSet", "team=blue"} {
		if out := k("describe", "deployment", "web"); !strings.Contains(out, want) {
			t.Errorf("describe lacks %s:\n%s", want, out)
		}
	}
	if out := k("get", "all"); !strings.Contains(out, "deployment.apps/web") || !strings.Contains(out, "service/web") {
		t.Errorf("get all:\n%s", out)
	}
	for _, args := range [][]string{{"explain", "deployment.spec.strategy"}, {"api-resources"}, {"api-versions"}, {"cluster-info"}, {"get", "--raw", "/readyz"},
		{"describe", "node"}, {"describe", "pods", "-n", "work"}, {"get", "events", "-n", "work"}, {"version"}} {
		c.must(args...)
	}
	secret := base64.StdEncoding.EncodeToString([]byte("x"))
	k("create", "secret", "generic", "s", "--from-literal=k=x")
	if out := k("get", "secret", "s", "-o", "jsonpath={.data.k}"); out != secret {
		t.Errorf("secret: %q", out)
	}
	apply := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: own, namespace: work}\ndata: {a: b}\n"
	if out, err := c.kubectlInput(apply, "apply", "--server-side", "-f", "-"); err != nil {
		t.Errorf("server-side apply: %v %s", err, out)
	}
	if out, err := c.kubectlInput(strings.Replace(apply, "a: b", "a: c", 1), "diff", "-f", "-"); err == nil || !strings.Contains(out, "+  a: c") {
		t.Errorf("diff: %v %s", err, out)
	}
	c.must("delete", "namespace", "work", "--timeout=60s")
	if out, err := c.kubectl("get", "pods,deployments,services,secrets", "-n", "work"); err != nil || !strings.Contains(out, "No resources found") {
		t.Errorf("after the namespace: %v\n%s", err, out)
	}
}
