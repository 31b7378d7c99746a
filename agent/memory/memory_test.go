package memory

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/agent/topology"
)

const gi = 1 << 30

func container(name, memory string) corev1.Container {
	l := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory), corev1.ResourceCPU: resource.MustParse("1")}
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: l, Requests: l}}
}

func pod(uid string, memory ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}
	for i, m := range memory {
		p.Spec.Containers = append(p.Spec.Containers, container(string(rune('a'+i)), m))
	}
	return p
}

func open(t *testing.T, file string) *Manager {
	t.Helper()
	m, err := New(Config{File: file, Nodes: map[int]Amounts{0: {corev1.ResourceMemory: 4 * gi}, 1: {corev1.ResourceMemory: 4 * gi}}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func give(t *testing.T, m *Manager, p *corev1.Pod, c *corev1.Container, affinity topology.Mask, want string) {
	t.Helper()
	err := m.Allocate(p, c, affinity)
	if want == "" {
		if err == nil {
			t.Errorf("container %s of pod %s was given memory of %v", c.Name, p.UID, m.Held(string(p.UID), c.Name))
		}
		return
	}
	if err != nil {
		t.Fatalf("container %s of pod %s: %v", c.Name, p.UID, err)
	}
	g, err := m.Grant(t.Context(), string(p.UID), c.Name)
	if err != nil || g.Memory != want {
		t.Errorf("container %s of pod %s: nodes %s, want %s", c.Name, p.UID, g.Memory, want)
	}
}

func TestNodesAreNotPromisedTwice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "memory.json")
	m := open(t, file)
	a, b, c := pod("a", "3Gi"), pod("b", "3Gi"), pod("c", "3Gi")
	give(t, m, a, &a.Spec.Containers[0], 0, "0")
	give(t, m, a, &a.Spec.Containers[0], topology.Of(1), "0") // it keeps them
	give(t, m, b, &b.Spec.Containers[0], topology.Of(0), "1") // 0 has not enough
	give(t, m, c, &c.Spec.Containers[0], 0, "")
	if hints := m.Hints(c, &c.Spec.Containers[0])["memory"]; hints == nil || len(hints) != 0 {
		t.Errorf("hints: %v", hints)
	}
	m = open(t, file) // a restart
	give(t, m, c, &c.Spec.Containers[0], 0, "")
	if err := m.Keep(map[string]bool{"b": true}); err != nil {
		t.Error(err)
	}
	give(t, m, c, &c.Spec.Containers[0], 0, "0")
	for range 2 {
		if err := m.Release("b"); err != nil {
			t.Error(err)
		}
	}
	d := pod("d", "1Gi", "6Gi")
	give(t, m, d, &d.Spec.Containers[0], 0, "0")
	give(t, m, d, &d.Spec.Containers[1], 0, "") // both nodes together, of which one is promised alone
	m.Release("c")
	m.Release("d")
	give(t, m, d, &d.Spec.Containers[1], 0, "0,1")
	give(t, m, d, &d.Spec.Containers[0], 0, "0,1") // 2Gi are left of both, and none of either alone
	m.Release("d")
	// The memory of init containers is free for the others.
	e := pod("e", "4Gi")
	e.Spec.InitContainers = []corev1.Container{container("i", "4Gi")}
	give(t, m, e, &e.Spec.InitContainers[0], 0, "0")
	give(t, m, e, &e.Spec.Containers[0], topology.Of(0), "0")
	if hints := m.Hints(pod("f", "3Gi"), nil)["memory"]; !reflect.DeepEqual(hints, []topology.Hint{{Nodes: topology.Of(1), Preferred: true}}) {
		t.Errorf("hints: %v", hints)
	}
	// Other pods are not tied.
	g := pod("g", "1Gi")
	g.Spec.Containers[0].Resources.Requests = nil
	g.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
	if err := m.Allocate(g, &g.Spec.Containers[0], 0); err != nil || m.Held("g", "a") != nil || m.Hints(g, nil) != nil {
		t.Errorf("a burstable pod: %v", m.Held("g", "a"))
	}
}

func TestReadMachine(t *testing.T) {
	sys := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(sys, "devices/system/node", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadMachine(sys); err == nil {
		t.Error("a machine without nodes was accepted")
	}
	for i, d := range []string{"10 21", "21 10"} {
		n := "node" + string(rune('0'+i))
		write(n+"/meminfo", "Node 0 MemTotal:       4194304 kB\nNode 0 MemFree: 1 kB\n")
		write(n+"/hugepages/hugepages-2048kB/nr_hugepages", "512\n")
		write(n+"/distance", d+"\n")
	}
	m, err := ReadMachine(sys)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Amounts{corev1.ResourceMemory: 3 * gi, "hugepages-2Mi": gi}); !reflect.DeepEqual(m.Nodes[1], want) {
		t.Errorf("%v, want %v", m.Nodes[1], want)
	}
	if m.Mask() != topology.Of(0, 1) || m.Distance(0, 1) != 21 || m.Distance(1, 1) != 10 {
		t.Errorf("%v %d %d", m.Mask(), m.Distance(0, 1), m.Distance(1, 1))
	}
	left, err := m.Without(map[int]Amounts{0: {corev1.ResourceMemory: gi}})
	if err != nil || left[0][corev1.ResourceMemory] != 2*gi || m.Nodes[0][corev1.ResourceMemory] != 3*gi {
		t.Errorf("%v, %v", left, err)
	}
	if _, err := m.Without(map[int]Amounts{7: {corev1.ResourceMemory: gi}}); err == nil || !strings.Contains(err.Error(), "node 7") {
		t.Error(err)
	}
	if m, err := ReadMachine("/sys"); err != nil || m.Nodes[0][corev1.ResourceMemory] == 0 {
		t.Errorf("this machine: %+v, %v", m, err)
	}
}
