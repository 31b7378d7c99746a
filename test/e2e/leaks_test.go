package e2e

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	leakBatches = 6
	leakPods    = 50 // in a batch
	// Connections of clients come and go: so many descriptors and goroutines more
	// than before are no leak. A leak of one for each pod is 300.
	leakSlack = 20
)

// Three hundred pods come, serve a Service, and go, in batches: afterwards knarr
// and the kernel hold what they held before.
func TestPodsLeaveNothingInKnarrOrTheKernel(t *testing.T) {
	c := start(t)
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: crowd}
spec:
  selector: {app: crowd}
  ports: [{port: 80}]
`)
	c.crowd(0) // what is made once and kept is made now
	before := c.holdings()
	for i := range leakBatches {
		c.crowd(i + 1)
	}
	c.eventually(fmt.Sprintf("after %d pods", leakBatches*leakPods), func() error {
		after := c.holdings()
		for what, n := range after {
			slack := 0
			if what == "goroutines" || what == "descriptors" {
				slack = leakSlack
			}
			if n > before[what]+slack {
				return fmt.Errorf("%s: %d, before %d (all: %v, before %v)", what, n, before[what], after, before)
			}
		}
		t.Logf("before %v, after %v", before, after)
		return nil
	})
}

// crowd runs one batch of pods and deletes it.
func (c *cluster) crowd(batch int) {
	c.t.Helper()
	pods := c.client.CoreV1().Pods("default")
	zero := int64(0)
	for i := range leakPods {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("crowd-%d-%d", batch, i), Labels: map[string]string{"app": "crowd"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: c.registry + "/hello:v1"}}},
		}
		if _, err := pods.Create(c.t.Context(), pod, metav1.CreateOptions{}); err != nil {
			c.t.Fatal(err)
		}
	}
	for i := range leakPods {
		c.awaitPod(fmt.Sprintf("crowd-%d-%d", batch, i), "ready", ready)
	}
	if err := pods.DeleteCollection(c.t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{}); err != nil {
		c.t.Fatal(err)
	}
	// The API forgets them at once, the node when nothing of them is left.
	c.eventually(fmt.Sprintf("batch %d has gone", batch), func() error {
		if body := c.askNode("/pods"); strings.Contains(body, "crowd-") {
			return errors.New("the node still has pods")
		}
		return nil
	})
}

// holdings counts what the cluster has of everything that a pod takes.
func (c *cluster) holdings() map[string]int {
	c.t.Helper()
	out := map[string]int{"goroutines": c.goroutines()}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.proc.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	out["descriptors"] = len(fds)
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", c.proc.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	out["mounts and pinned namespaces"] = strings.Count(string(mounts), c.dir)
	out["control groups"] = count(c.t, "/sys/fs/cgroup", "/"+c.name+"/")
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, l := range links {
		if strings.Contains(l.Name(), c.name) {
			out["links"]++
		}
	}
	for _, dir := range []string{"data/containers/pods", "data/containers/containers", "data/agent/pods", "data/logs", "run/containers"} {
		out["files in "+dir] = count(c.t, filepath.Join(c.dir, dir), "")
	}
	procs, _ := c.running()
	out["processes"] = len(procs)
	out["eBPF map entries"] = c.mapEntries()
	return out
}

// count counts the files beneath dir whose path contains part.
func count(t *testing.T, dir, part string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, part) {
			n++
		}
		return nil // what vanishes meanwhile is not there
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// goroutines asks the node for their number.
func (c *cluster) goroutines() (n int) {
	c.t.Helper()
	body := c.askNode("/debug/pprof/goroutine?debug=1")
	if _, err := fmt.Sscanf(body, "goroutine profile: total %d", &n); err != nil {
		c.t.Fatalf("the node answered %.200s", body)
	}
	return n
}

// askNode reads from the kubelet API.
func (c *cluster) askNode(path string) string {
	c.t.Helper()
	node, err := c.client.CoreV1().Nodes().Get(c.t.Context(), "node-"+c.name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	conf, err := rest.TLSConfigFor(c.config)
	if err != nil {
		c.t.Fatal(err)
	}
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: conf}}
	resp, err := hc.Get(fmt.Sprintf("https://127.0.0.1:%d%s", node.Status.DaemonEndpoints.KubeletEndpoint.Port, path))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("the node answered %s (%v): %.200s", resp.Status, err, body)
	}
	return string(body)
}

// mapEntries counts the entries of the cluster's pinned maps, but for those in
// which the kernel itself makes room.
func (c *cluster) mapEntries() (n int) {
	c.t.Helper()
	maps := 0
	err := filepath.WalkDir(filepath.Join(c.dir, "run/datapath/bpf"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil // a program
		}
		defer m.Close()
		if m.Type() != ebpf.Hash {
			return nil
		}
		maps++
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		it := m.Iterate()
		for it.Next(&key, &value) {
			n++
		}
		return it.Err()
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if maps == 0 {
		c.t.Fatal("no eBPF hash map is pinned: nothing was counted")
	}
	return n
}
