package cpus

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent/topology"
)

func container(name, cpus string) corev1.Container {
	l := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpus), corev1.ResourceMemory: resource.MustParse("1Mi")}
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: l, Requests: l}}
}

func pod(uid string, cpus ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}
	for i, n := range cpus {
		p.Spec.Containers = append(p.Spec.Containers, container(string(rune('a'+i)), n))
	}
	return p
}

type world struct {
	t       *testing.T
	m       *Manager
	changed int
}

func open(t *testing.T, m Machine, o Options, file string) *world {
	t.Helper()
	w := &world{t: t}
	var err error
	if w.m, err = New(Config{Machine: m, Options: o, Reserved: cpuset.New(0), File: file, Changed: func() { w.changed++ }}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) give(p *corev1.Pod, c *corev1.Container, affinity topology.Mask, want string) {
	w.t.Helper()
	if err := w.m.Allocate(p, c, affinity); err != nil {
		w.t.Fatalf("container %s of pod %s: %v", c.Name, p.UID, err)
	}
	if g, err := w.m.Grant(w.t.Context(), string(p.UID), c.Name); err != nil || g.CPUs != want {
		w.t.Errorf("container %s of pod %s: CPUs %s, want %s", c.Name, p.UID, g.CPUs, want)
	}
}

func TestGuaranteedContainersHaveCPUsAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cpus.json")
	m := machine(1, 1, 8, 1)
	w := open(t, m, Options{}, file)
	a := pod("a", "2", "500m", "1")
	w.give(a, &a.Spec.Containers[0], 0, "1-2")
	w.give(a, &a.Spec.Containers[1], 0, "0,3-7")
	w.give(a, &a.Spec.Containers[2], 0, "3")
	if w.changed != 2 || w.m.Shared().String() != "0,4-7" || !w.m.Pinned("a") {
		t.Errorf("shared %s after %d changes", w.m.Shared(), w.changed)
	}
	w.give(a, &a.Spec.Containers[0], 0, "1-2") // it keeps them
	b := pod("b", "5")
	if err := w.m.Allocate(b, &b.Spec.Containers[0], 0); err == nil || err.Error() != "not enough cpus available to satisfy request: requested=5, available=4" {
		t.Errorf("too many: %v", err)
	}
	w = open(t, m, Options{}, file) // a restart
	b = pod("b", "4")
	w.give(b, &b.Spec.Containers[0], 0, "4-7")
	if err := w.m.Keep(map[string]bool{"b": true}); err != nil || w.m.Pinned("a") {
		t.Error(err)
	}
	// An init container's CPUs pass to those after it; a sidecar's do not.
	c := pod("c", "1", "1")
	c.Spec.InitContainers = []corev1.Container{container("i", "2")}
	w.give(c, &c.Spec.InitContainers[0], 0, "1-2")
	w.give(c, &c.Spec.Containers[0], 0, "1")
	w.give(c, &c.Spec.Containers[1], 0, "2")
	w.m.Release("c")
	always := corev1.ContainerRestartPolicyAlways
	c.Spec.InitContainers[0].RestartPolicy = &always
	w.give(c, &c.Spec.InitContainers[0], 0, "1-2")
	w.give(c, &c.Spec.Containers[0], 0, "3")
	for range 2 {
		if err := w.m.Release("c"); err != nil {
			t.Error(err)
		}
	}
	// Pods that are not guaranteed share.
	d := pod("d", "1")
	delete(d.Spec.Containers[0].Resources.Limits, corev1.ResourceMemory)
	delete(d.Spec.Containers[0].Resources.Requests, corev1.ResourceMemory)
	w.give(d, &d.Spec.Containers[0], 0, "0-3")
	strict := open(t, m, Options{StrictReservation: true}, file)
	strict.give(d, &d.Spec.Containers[0], 0, "1-3")
}

func TestFullCores(t *testing.T) {
	w := open(t, machine(1, 1, 4, 2), Options{FullCores: true}, filepath.Join(t.TempDir(), "c"))
	odd, much, fits := pod("odd", "3"), pod("much", "8"), pod("fits", "2")
	for p, want := range map[*corev1.Pod]string{
		odd:  "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2",
		much: "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 6, requested CPUs = 8, CPUs per core = 2",
	} {
		err := w.m.Allocate(p, &p.Spec.Containers[0], 0)
		var r interface{ Reason() string }
		if !errors.As(err, &r) || r.Reason() != "SMTAlignmentError" || err.Error() != want {
			t.Errorf("%s: %v", p.UID, err)
		}
	}
	w.give(fits, &fits.Spec.Containers[0], 0, "1,5")
}

func TestHintsAndAffinity(t *testing.T) {
	m := machine(2, 2, 2, 1) // nodes 0,1 | 2,3 || 4,5 | 6,7
	w := open(t, m, Options{}, filepath.Join(t.TempDir(), "c"))
	p := pod("p", "2")
	hints := w.m.Hints(p, &p.Spec.Containers[0])["cpu"]
	if len(hints) < 4 || hints[0] != (topology.Hint{Nodes: topology.Of(1), Preferred: true}) || hints[3].Preferred {
		t.Errorf("hints: %v", hints)
	}
	for _, h := range hints {
		if h.Nodes == topology.Of(0) {
			t.Error("node 0 has one CPU for pods")
		}
	}
	w.give(p, &p.Spec.Containers[0], topology.Of(2), "4-5")
	if got := w.m.Hints(p, &p.Spec.Containers[0])["cpu"]; !reflect.DeepEqual(got, []topology.Hint{{Nodes: topology.Of(2), Preferred: true}}) {
		t.Errorf("hints of what it has: %v", got)
	}
	q := pod("q", "3")
	w.give(q, &q.Spec.Containers[0], topology.Of(3), "1,6-7") // the rest from the begun node
	if got := w.m.Hints(pod("r", "2", "3"), nil)["cpu"]; got == nil || len(got) != 0 {
		t.Errorf("hints of a whole pod: %v", got)
	}
	s := open(t, m, Options{AlignSocket: true}, filepath.Join(t.TempDir(), "c"))
	for _, h := range s.m.Hints(p, &p.Spec.Containers[0])["cpu"] {
		one := h.Nodes&topology.Of(0, 1) == 0 || h.Nodes&topology.Of(2, 3) == 0
		if h.Preferred != one {
			t.Errorf("hint %v", h)
		}
	}
	big := pod("big", "4")
	s.give(big, &big.Spec.Containers[0], topology.Of(3), "4-7")
}

func TestStateIsChecked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c")
	w := open(t, machine(1, 1, 8, 1), Options{}, file)
	p := pod("p", "7")
	w.give(p, &p.Spec.Containers[0], 0, "1-7")
	if _, err := New(Config{Machine: machine(1, 1, 4, 1), Reserved: cpuset.New(0), File: file}); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Error(err)
	}
	for _, reserved := range []cpuset.CPUSet{cpuset.New(), cpuset.New(99), cpuset.New(0, 1)} {
		if _, err := New(Config{Machine: machine(1, 1, 2, 1), Reserved: reserved, File: file}); err == nil {
			t.Errorf("%s reserved was accepted", reserved)
		}
	}
	if m, err := ReadMachine("/sys"); err != nil || len(m) == 0 || m.PerCore() < 1 {
		t.Errorf("this machine: %v, %v", m, err)
	}
}
