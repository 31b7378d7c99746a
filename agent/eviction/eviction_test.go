package eviction

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"
)

func TestParse(t *testing.T) {
	got, err := ParseThresholds("memory.available<100Mi, nodefs.available<12.5%", "<")
	if err != nil || len(got) != 2 || got[NodeFsAvailable].Of(1000) != 125 || got[MemoryAvailable].Of(0) != 100<<20 {
		t.Errorf("%v, %v", got, err)
	}
	for text, want := range map[string]string{"x<1": "no eviction signal", "memory.available": "want SIGNAL<VALUE", "memory.available<-1": "positive", "memory.available<100%": "percentage",
		"pid.available<1,pid.available<2": "given twice"} {
		if _, err := ParseThresholds(text, "<"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// A large disk need not be as empty as a small one.
	for capacity, want := range map[int64]int64{4 << 30: 4 << 30 / 20, 1000 << 30: 1 << 30} {
		if got := Default().Hard[NodeFsAvailable].Of(capacity); got < want-1 || got > want+1 {
			t.Errorf("of %d: %d, want %d", capacity, got, want)
		}
	}
	if g, err := ParseGrace("memory.available=1m30s"); err != nil || g[MemoryAvailable] != 90*time.Second {
		t.Errorf("%v, %v", g, err)
	}
}

// A threshold acts at once or after its grace, needs its reclaim to be left, and its
// condition stays for the transition period.
func TestNext(t *testing.T) {
	c := &Config{Hard: map[Signal]Value{MemoryAvailable: {Quantity: resource.MustParse("100")}, NodeFsAvailable: {Share: .1}},
		Soft: map[Signal]Value{MemoryAvailable: {Quantity: resource.MustParse("200")}}, Grace: map[Signal]time.Duration{MemoryAvailable: 30 * time.Second},
		Reclaim: map[Signal]Value{MemoryAvailable: {Quantity: resource.MustParse("20")}}, MaxPodGrace: 7 * time.Second, Transition: time.Minute}
	var s State
	for i, tc := range []struct {
		at           int // seconds
		memory, disk int64
		want         string
	}{
		{0, 500, 500, " "},
		{10, 150, 500, "MemoryPressure "}, // soft, in its grace
		{39, 150, 500, "MemoryPressure "},
		{40, 150, 500, "MemoryPressure memory.available soft 7 200"},
		{50, 99, 500, "MemoryPressure memory.available hard 1 100"},
		{60, 110, 500, "MemoryPressure memory.available hard 1 100"}, // not enough came back
		{70, 120, 500, "MemoryPressure memory.available soft 7 200"},
		{80, 300, 500, "MemoryPressure "}, // for the transition
		{129, 300, 500, "MemoryPressure "},
		{130, 300, 500, " "},
		{140, 300, 99, "DiskPressure nodefs.available hard 1 100"},
		{150, 50, 99, "DiskPressure,MemoryPressure memory.available hard 1 100"}, // memory goes first
	} {
		var conditions map[corev1.NodeConditionType]bool
		var act *Short
		o := Observation{MemoryAvailable: {tc.memory, 1000}, NodeFsAvailable: {tc.disk, 1000}}
		s, conditions, act = s.Next(c, o, time.Unix(int64(1000+tc.at), 0))
		var names []string
		for _, k := range []corev1.NodeConditionType{corev1.NodeDiskPressure, corev1.NodeMemoryPressure, corev1.NodePIDPressure} {
			if conditions[k] {
				names = append(names, string(k))
			}
		}
		got := strings.Join(names, ",") + " "
		if act != nil {
			kind := "soft"
			if act.Hard {
				kind = "hard"
			}
			got += fmt.Sprintf("%s %s %d %s", act.Signal, kind, *act.Grace, act.Threshold.String())
		}
		if got != tc.want {
			t.Errorf("%d: %q, want %q", i, got, tc.want)
		}
	}
}

func pod(name string, priority int32, memory string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{{Name: "c"}}}}
	if memory != "" {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return p
}

func using(n uint64) *stats.PodStats {
	return &stats.PodStats{Memory: &stats.MemoryStats{WorkingSetBytes: &n}, ProcessStats: &stats.ProcessStats{ProcessCount: &n}, EphemeralStorage: &stats.FsStats{UsedBytes: &n, InodesUsed: &n},
		Containers: []stats.ContainerStats{{Name: "c", Memory: &stats.MemoryStats{WorkingSetBytes: &n}}}}
}

func TestRank(t *testing.T) {
	pods := []*corev1.Pod{pod("within", 0, "1000"), pod("important", 10, "1"), pod("slightly", 0, "500"), pod("most", 0, ""), pod("idle", 0, "1")}
	used := map[string]*stats.PodStats{"within": using(900), "important": using(800), "slightly": using(600), "most": using(400)}
	for s, want := range map[Signal]string{MemoryAvailable: "most slightly important idle within", PIDAvailable: "within slightly most idle important"} {
		var got []string
		for _, p := range Rank(s, pods, used) {
			got = append(got, p.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", s, got, want)
		}
	}
	short := &Short{Signal: MemoryAvailable, Threshold: resource.MustParse("100Mi"), Available: resource.MustParse("50Mi")}
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 600, request is 500, has larger consumption of memory. "
	if got := Message(short, pods[2], used["slightly"]); got != want {
		t.Errorf("message %q", got)
	}
}

func TestOverdrawn(t *testing.T) {
	limit := resource.MustParse("1Ki")
	volume := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}}}}
	container := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceEphemeralStorage: limit}}}}}}
	full := &stats.PodStats{VolumeStats: []stats.VolumeStats{{Name: "v", FsStats: stats.FsStats{UsedBytes: ptr.To(uint64(2048))}}}}
	for want, got := range map[string]string{
		`Usage of EmptyDir volume "v" exceeds the limit "1Ki". `:                        Overdrawn(volume, full),
		"Pod ephemeral local storage usage exceeds the total limit of containers 1Ki. ": Overdrawn(container, using(4096)),
		"": Overdrawn(container, using(10)),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if !Limited(volume) || !Limited(container) || Limited(&corev1.Pod{}) {
		t.Error("who has limits")
	}
}

func TestVictims(t *testing.T) {
	room := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1000"), corev1.ResourcePods: resource.MustParse("3")}
	may := func(p *corev1.Pod) bool { return *p.Spec.Priority < 100 }
	for name, tc := range map[string]struct {
		pod    *corev1.Pod
		others []*corev1.Pod
		want   string
	}{
		"it fits":            {pod("new", 200, "100"), []*corev1.Pod{pod("a", 0, "100")}, ""},
		"the least goes":     {pod("new", 200, "500"), []*corev1.Pod{pod("a", 5, "600"), pod("b", 1, "300")}, "b a"},
		"the largest goes":   {pod("new", 200, "500"), []*corev1.Pod{pod("small", 0, "100"), pod("big", 0, "600")}, "big"},
		"critical ones stay": {pod("new", 200, "500"), []*corev1.Pod{pod("a", 100, "600")}, ""},
		"a place among pods": {pod("new", 200, ""), []*corev1.Pod{pod("a", 3, ""), pod("b", 2, ""), pod("c", 4, "")}, "b"},
		"nothing would do":   {pod("new", 200, "2000"), []*corev1.Pod{pod("a", 0, "600")}, ""},
	} {
		var got []string
		for _, v := range Victims(tc.pod, tc.others, room, may) {
			got = append(got, v.Name)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %v, want %s", name, got, tc.want)
		}
	}
}
