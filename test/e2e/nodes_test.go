package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// startNodes boots a cluster of two nodes.
func startNodes(t *testing.T) *cluster {
	t.Helper()
	return startWith(t, func(dir string) string { return filepath.Join(dir, "data") }, "--nodes", "2")
}

// spread is two servers on each node, and a service with a node port.
const spread = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 4
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: hello}}, nodeTaintsPolicy: Honor}
      containers:
      - name: hello
        image: REGISTRY/hello:v1
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  type: NodePort
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: green}
`

// client is a pod on a certain node that talks and can ask.
const client = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: client}}
spec:
  nodeSelector: {kubernetes.io/hostname: NODE}
  terminationGracePeriodSeconds: 1
  containers:
  - name: tools
    image: REGISTRY/tools:1
    command: [sh, -c, "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.01; done"]
    env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}]
    volumeMounts: [{name: settings, mountPath: /settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
`

// spread deploys it, and a client on each node; the first node's comes first.
func (c *cluster) spread() []corev1.Pod {
	c.t.Helper()
	c.apply(spread)
	var out []corev1.Pod
	for i, node := range []string{"node-" + c.name, "node-" + c.name + "-2"} {
		c.apply(strings.NewReplacer("NAME", fmt.Sprintf("client-%d", i+1), "NODE", node).Replace(client))
		out = append(out, *c.awaitPod(fmt.Sprintf("client-%d", i+1), "ready", ready))
	}
	c.must("rollout", "status", "deployment/hello", "--timeout=60s")
	return out
}

func (c *cluster) nodeIndex(node string) int {
	if node == "node-"+c.name {
		return 0
	}
	return 1
}

func (c *cluster) pods(selector string) []corev1.Pod {
	c.t.Helper()
	list, err := c.client.CoreV1().Pods("default").List(c.t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		c.t.Fatal(err)
	}
	return list.Items
}

// Two nodes of one machine are as two machines: pods of both, and the machine,
// reach each other, Services, node ports and DNS; logs, exec and port-forward work
// on both; Deployments are spread, and drained away.
func TestTwoNodes(t *testing.T) {
	c := startNodes(t)
	nodes, err := c.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 2 {
		t.Fatalf("%d nodes, %v", len(nodes.Items), err)
	}
	var addrs []string
	for i, n := range nodes.Items {
		if want := fmt.Sprintf("10.%d.%d.0/24", c.octet(), i); n.Spec.PodCIDR != want {
			t.Errorf("node %s has pod range %q, want %s", n.Name, n.Spec.PodCIDR, want)
		}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				addrs = append(addrs, a.Address)
			}
		}
	}
	clients := c.spread()
	c.checkSpread(2, 2)
	c.checkReach(clients, addrs)
	c.checkStreams(clients[1])
	c.checkSettings(clients)

	c.must("drain", "node-"+c.name+"-2", "--force", "--timeout=60s")
	c.must("rollout", "status", "deployment/hello", "--timeout=60s")
	c.eventually("after the drain", func() error { return c.spreadIs(4, 0) })
	c.must("uncordon", "node-"+c.name+"-2")
}

const locality = `
apiVersion: v1
kind: Pod
metadata: {name: host, labels: {app: host}}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: NODE}
  containers: [{name: tools, image: REGISTRY/tools:1}]
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: NodePort
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
`

// Pods in a further node's own network, and services that stay on a node, work as
// on a machine of its own.
func TestServicesOfTwoNodes(t *testing.T) {
	c := startNodes(t)
	clients := c.spread()
	second := "node-" + c.name + "-2"
	c.apply(strings.ReplaceAll(locality, "NODE", second))
	host := c.awaitPod("host", "ready", ready)
	if want := fmt.Sprintf("10.%d.1.1", c.octet()); host.Status.PodIP != want {
		t.Errorf("the pod in the second node's network has address %s, want %s", host.Status.PodIP, want)
	}
	near, err := c.client.CoreV1().Services("default").Get(t.Context(), "near", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	names := [2]map[string]bool{{}, {}} // of the servers, by node
	for _, p := range c.pods("app=hello") {
		names[c.nodeIndex(p.Spec.NodeName)][p.Name] = true
	}
	from := func(pod string, urls ...string) {
		t.Helper()
		for _, u := range urls {
			if out, err := c.kubectl("exec", pod, "--", "wget", "-qO-", u); err != nil || !strings.HasPrefix(out, "hello v1") {
				t.Errorf("%s from %s: %q, %v", u, pod, out, err)
			}
		}
	}
	from("host", "http://hello", "http://hello.default.svc", "http://near")
	port := near.Spec.Ports[0].NodePort
	from(clients[0].Name, fmt.Sprintf("http://%s:%d", host.Status.PodIP, port))
	// What stays on a node is answered by its own servers alone.
	for i, ask := range []func() (string, error){
		func() (string, error) { return c.kubectl("exec", clients[0].Name, "--", "wget", "-qO-", "http://near") },
		func() (string, error) { return c.kubectl("exec", clients[1].Name, "--", "wget", "-qO-", "http://near") },
		func() (string, error) { return get(t.Context(), fmt.Sprintf("http://%s:%d", host.Status.PodIP, port)) },
	} {
		node := min(i, 1)
		for range 8 {
			out, err := ask()
			if f := strings.Fields(out); err != nil || len(f) < 4 || !names[node][f[3]] {
				t.Fatalf("question %d was answered by %q, %v; servers of the node are %v", i, out, err, names[node])
			}
		}
	}
}

func (c *cluster) spreadIs(want ...int) error {
	got := make([]int, 2)
	for _, p := range c.pods("app=hello") {
		if p.DeletionTimestamp == nil && ready(&p) {
			got[c.nodeIndex(p.Spec.NodeName)]++
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("pods on the nodes: %v, want %v", got, want)
	}
	return nil
}

func (c *cluster) checkSpread(want ...int) {
	c.t.Helper()
	if err := c.spreadIs(want...); err != nil {
		c.t.Error(err)
	}
}

// checkReach asks everybody from everywhere.
func (c *cluster) checkReach(clients []corev1.Pod, nodes []string) {
	c.t.Helper()
	svc, err := c.client.CoreV1().Services("default").Get(c.t.Context(), "hello", metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	urls := []string{"http://" + svc.Spec.ClusterIP}
	for _, p := range c.pods("app=hello") {
		urls = append(urls, "http://"+p.Status.PodIP+":8080")
	}
	for _, n := range nodes {
		urls = append(urls, fmt.Sprintf("http://%s:%d", n, svc.Spec.Ports[0].NodePort))
	}
	for _, u := range urls {
		if b, err := get(c.t.Context(), u); err != nil || !strings.HasPrefix(b, "hello v1") {
			c.t.Errorf("%s from the machine: %q, %v", u, b, err)
		}
	}
	for _, p := range clients {
		for _, u := range append(urls, "http://hello", "http://hello.default.svc.cluster.local") {
			if out, err := c.kubectl("exec", p.Name, "--", "wget", "-qO-", u); err != nil || !strings.HasPrefix(out, "hello v1") {
				c.t.Errorf("%s from %s: %q, %v", u, p.Spec.NodeName, out, err)
			}
		}
	}
}

// checkStreams uses what goes through the API server to a node.
func (c *cluster) checkStreams(p corev1.Pod) {
	c.t.Helper()
	if out := c.must("logs", p.Name, "--tail=3"); strings.Count(out, "line ") != 3 {
		c.t.Errorf("logs of %s: %q", p.Name, out)
	}
	if out, err := c.kubectlInput("over there", "exec", "-i", p.Name, "--", "cat"); err != nil || out != "over there" {
		c.t.Errorf("exec with input in %s: %q, %v", p.Name, out, err)
	}
	var server corev1.Pod
	for _, h := range c.pods("app=hello") {
		if h.Spec.NodeName == p.Spec.NodeName {
			server = h
		}
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	bin, err := binary()
	if err != nil {
		c.t.Fatal(err)
	}
	port := freePort(c.t)
	cmd := exec.CommandContext(ctx, bin, "kubectl", "--kubeconfig", filepath.Join(c.dir, "kubeconfig"), "port-forward", server.Name, fmt.Sprintf("%d:8080", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	if _, err := out.Read(make([]byte, 64)); err != nil { // "Forwarding from ..."
		c.t.Fatalf("port-forward: %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if b, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d", port)); err != nil || !strings.HasPrefix(b, "hello v1") {
		c.t.Errorf("port-forward to %s: %q, %v", server.Name, b, err)
	}
}

// checkSettings reads a ConfigMap in pods, and its change.
func (c *cluster) checkSettings(clients []corev1.Pod) {
	c.t.Helper()
	for _, p := range clients {
		if out := c.must("exec", p.Name, "--", "sh", "-c", "echo $COLOR; cat /settings/color"); out != "green\ngreen" {
			c.t.Errorf("settings in %s: %q", p.Spec.NodeName, out)
		}
	}
	c.must("patch", "configmap", "settings", "-p", `{"data":{"color":"blue"}}`)
	for _, p := range clients {
		c.eventually("the change of a ConfigMap on "+p.Spec.NodeName, func() error {
			if out := c.must("exec", p.Name, "--", "cat", "/settings/color"); out != "blue" {
				return fmt.Errorf("still %q", out)
			}
			return nil
		})
	}
}

// A Deployment whose pods are on both nodes is rolled under load from the machine
// and from a pod of each node: no request fails, although each node has a data
// path of its own.
func TestRollingUpdateAcrossNodesLosesNothing(t *testing.T) {
	c := startNodes(t)
	clients := c.spread()
	svc, err := c.client.CoreV1().Services("default").Get(t.Context(), "hello", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	host := c.load("-rate", "800", "http://"+svc.Spec.ClusterIP+"/")
	var loads []*load
	for _, p := range clients {
		loads = append(loads, c.execLoad(p.Name, "-rate", "800", "http://hello/"))
	}
	for i := range 4 {
		c.must("set", "image", "deployment/hello", fmt.Sprintf("hello=%s/hello:v%d", c.registry, 2-i%2))
		c.must("rollout", "status", "deployment/hello", "--timeout=90s")
	}
	host.check("from the machine", host.stop())
	for i, l := range loads {
		l.check("from a pod on "+clients[i].Spec.NodeName, l.stopIn(c, clients[i].Name))
	}
}

// further returns the process of a further node, by the note that it keeps.
func (c *cluster) further(i int) int {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "run/nodes", fmt.Sprintf("node-%s-%d", c.name, i), "knarr.pid"))
	if err != nil {
		c.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// The parent and the second node's process are killed in turns: containers of both
// nodes keep their processes, requests do not fail, and the node is Ready again.
func TestKillOfNodes(t *testing.T) {
	c := startNodes(t)
	clients := c.spread()
	before := c.processes()
	if len(before) != 6 {
		t.Fatalf("processes of 6 containers: %v", before)
	}
	svc, err := c.client.CoreV1().Services("default").Get(t.Context(), "hello", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	host := c.load("-rate", "300", "http://"+svc.Spec.ClusterIP+"/")
	for round := range 3 {
		pid := c.further(2)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.eventually("the second node's process is replaced", func() error {
			if now := c.further(2); now == pid {
				return errors.New("the process is still the one that was killed")
			}
			return nil
		})
		if !strings.Contains(c.logs(), "the node's process ended") {
			t.Error("the log does not tell of the end of the second node's process")
		}
		c.eventually("exec on the second node", func() error {
			_, err := c.kubectl("exec", clients[1].Name, "--", "true")
			return err
		})
		c.kill()
		c.up()
		for _, p := range clients {
			c.eventually(fmt.Sprintf("exec on %s in round %d", p.Spec.NodeName, round), func() error {
				_, err := c.kubectl("exec", p.Name, "--", "true")
				return err
			})
		}
	}
	host.check("from the machine", host.stop())
	after := c.processes()
	for key, pid := range before {
		if after[key] != pid {
			t.Errorf("container %s had process %s and has %s", key, pid, after[key])
		}
	}
	for _, p := range c.pods("") {
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount != 0 {
				t.Errorf("pod %s was restarted %d times", p.Name, s.RestartCount)
			}
		}
	}
	c.checkTalk(clients[1].Name)
}
