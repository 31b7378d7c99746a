package devices

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	clocktesting "k8s.io/utils/clock/testing"

	"knarr.dev/knarr/agent/devices/devicetest"
	"knarr.dev/knarr/agent/topology"
)

const gpu = "example.com/gpu"

// world is a manager that runs.
type world struct {
	t     *testing.T
	m     *Manager
	cfg   Config
	clock *clocktesting.FakeClock
	stop  func()

	mu      sync.Mutex
	pods    []string
	changed chan struct{}
}

func open(t *testing.T, dir string) *world {
	t.Helper()
	w := &world{t: t, clock: clocktesting.NewFakeClock(time.Now()), changed: make(chan struct{}, 100)}
	w.cfg = Config{Dir: filepath.Join(dir, "p"), File: filepath.Join(dir, "devices.json"), Clock: w.clock, Log: slog.New(slog.DiscardHandler),
		Changed: func(pods []string) {
			w.mu.Lock()
			w.pods = append(w.pods, pods...)
			w.mu.Unlock()
			w.changed <- struct{}{}
		}}
	if err := os.MkdirAll(w.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.m, err = New(w.cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.m.Run(ctx) }()
	w.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(w.stop)
	return w
}

// plugin starts one and waits until its devices are known.
func (w *world) plugin(p *devicetest.Plugin) *devicetest.Plugin {
	w.t.Helper()
	p.Resource = gpu
	p.Start(w.t, w.cfg.Dir)
	w.register(p)
	return p
}

func (w *world) register(p *devicetest.Plugin) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Register(ctx, w.cfg.Dir); err != nil {
		w.t.Fatal(err)
	}
	w.await("devices", func() bool { _, free := w.m.Capacity(); q := free[gpu]; return !q.IsZero() })
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	late := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-w.changed:
		case <-late:
			w.t.Fatalf("never: %s", what)
		}
	}
}

func (w *world) counts(capacity, allocatable int64) {
	w.t.Helper()
	a, b := w.m.Capacity()
	c, f := a[gpu], b[gpu]
	if c.Value() != capacity || f.Value() != allocatable {
		w.t.Errorf("capacity %v, allocatable %v; want %d, %d", &c, &f, capacity, allocatable)
	}
}

func podOf(uid string, n ...int64) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}
	for i, k := range n {
		p.Spec.Containers = append(p.Spec.Containers, container(string(rune('a'+i)), k))
	}
	return p
}

func container(name string, n int64) corev1.Container {
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{gpu: *resource.NewQuantity(n, resource.DecimalSI)}}}
}

func (w *world) give(p *corev1.Pod, c *corev1.Container, affinity topology.Mask, want ...string) {
	w.t.Helper()
	if err := w.m.Allocate(p, c, affinity); err != nil {
		w.t.Fatalf("pod %s: %v", p.UID, err)
	}
	w.has(string(p.UID), c.Name, want...)
}

func (w *world) has(uid, container string, want ...string) {
	w.t.Helper()
	var ids []string
	for _, d := range w.m.Held(uid, container) {
		ids = append(ids, d.ID)
	}
	if !slices.Equal(ids, want) {
		w.t.Errorf("container %s of pod %s holds %q, want %q", container, uid, ids, want)
	}
}

func TestDevicesAreGivenAndTakenBack(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir)
	answer := func(ids []string) *pluginapi.ContainerAllocateResponse {
		return &pluginapi.ContainerAllocateResponse{
			Envs: map[string]string{"GPUS": strings.Join(ids, ",")}, Annotations: map[string]string{"a": "b"},
			Devices:    []*pluginapi.DeviceSpec{{HostPath: "/dev/null", ContainerPath: "/dev/gpu", Permissions: "rw"}},
			Mounts:     []*pluginapi.Mount{{HostPath: "/lib", ContainerPath: "/gpu", ReadOnly: true}},
			CdiDevices: []*pluginapi.CDIDevice{{Name: "example.com/gpu=" + ids[0]}},
		}
	}
	p := &devicetest.Plugin{Answer: answer, Options: &pluginapi.DevicePluginOptions{PreStartRequired: true}}
	p.Set(devicetest.Device("g0"), devicetest.Device("g1"), devicetest.Device("g2"))
	w.plugin(p)
	w.counts(3, 3)
	one := podOf("one", 2)
	w.give(one, &one.Spec.Containers[0], 0, "g0", "g1")
	w.give(one, &one.Spec.Containers[0], 0, "g0", "g1") // it keeps them
	two := podOf("two", 2)
	if err := w.m.Allocate(two, &two.Spec.Containers[0], 0); err == nil || err.Error() != "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1" {
		t.Errorf("too many: %v", err)
	}
	g, err := w.m.Grant(t.Context(), "one", "a")
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Envs) != 1 || string(g.Envs[0].Value) != "g0,g1" || g.Annotations["a"] != "b" || g.Devices[0].Permissions != "rw" || !g.Mounts[0].Readonly || g.CDI[0].Name != "example.com/gpu=g0" {
		t.Errorf("grant: %+v", g)
	}
	if want := []string{"Allocate g0,g1", "PreStartContainer g0,g1"}; !slices.Equal(p.Calls(), want) {
		t.Errorf("calls: %q, want %q", p.Calls(), want)
	}
	// The agent dies; the next one knows, whatever the plugin does.
	w.stop()
	w = open(t, dir)
	w.has("one", "a", "g0", "g1")
	w.counts(0, 0)
	if err := w.m.Allocate(two, &two.Spec.Containers[0], 0); err == nil || !strings.Contains(err.Error(), "unregistered") {
		t.Errorf("without its plugin: %v", err)
	}
	w.register(p)
	if g, err := w.m.Grant(t.Context(), "one", "a"); err != nil || string(g.Envs[0].Value) != "g0,g1" {
		t.Errorf("grant after a restart: %+v, %v", g, err)
	}
	if err := w.m.Keep(map[string]bool{"other": true}); err != nil {
		t.Error(err)
	}
	w.give(two, &two.Spec.Containers[0], 0, "g0", "g1")
	for range 2 {
		if err := w.m.Release("two"); err != nil {
			t.Error(err)
		}
	}
	w.has("two", "a")
}

func TestHealthIsFollowed(t *testing.T) {
	w := open(t, t.TempDir())
	p := &devicetest.Plugin{}
	p.Set(devicetest.Device("g0"), devicetest.Device("g1"))
	w.plugin(p)
	one := podOf("one", 1)
	w.give(one, &one.Spec.Containers[0], 0, "g0")
	health := func() string {
		st := w.m.Health("one", "a")
		if len(st) != 1 || st[0].Name != gpu || len(st[0].Resources) != 1 || st[0].Resources[0].ResourceID != "g0" {
			t.Fatalf("health: %+v", st)
		}
		return string(st[0].Resources[0].Health)
	}
	if h := health(); h != "Healthy" {
		t.Error(h)
	}
	ill := devicetest.Device("g0")
	ill.Health = pluginapi.Unhealthy
	p.Set(ill, devicetest.Device("g1"))
	w.await("illness", func() bool { return health() == "Unhealthy" })
	w.counts(2, 1)
	w.mu.Lock()
	if !slices.Contains(w.pods, "one") {
		t.Errorf("the pod was not told: %q", w.pods)
	}
	w.mu.Unlock()
	p.Stop()
	w.await("the end of the plugin", func() bool { return health() == "Unknown" })
	w.counts(2, 0)
	w.clock.Step(goneAfter)
	w.counts(0, 0)
	p.Start(t, w.cfg.Dir)
	p.Set(devicetest.Device("g0"), devicetest.Device("g1"))
	w.register(p)
	w.counts(2, 2)
	if health() != "Healthy" {
		t.Error("not healthy again")
	}
}

func TestWhichDevices(t *testing.T) {
	w := open(t, t.TempDir())
	p := &devicetest.Plugin{Options: &pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: true}}
	p.Prefer = func(available, must []string, n int) []string {
		return append(slices.Clone(must), "b3", "nonsense", "b1")
	}
	p.Set(devicetest.Device("a0", 0), devicetest.Device("b1", 1), devicetest.Device("b2", 1), devicetest.Device("b3", 1), devicetest.Device("c", 0, 1))
	w.plugin(p)
	one := podOf("one", 1)
	w.give(one, &one.Spec.Containers[0], topology.Of(1), "b3")
	two := podOf("two", 3)
	w.give(two, &two.Spec.Containers[0], topology.Of(1), "b1", "b2", "c")
	w.m.Release("one")
	w.m.Release("two")
	// An init container's devices pass to the containers after it.
	three := podOf("three", 1, 1)
	three.Spec.InitContainers = []corev1.Container{container("i", 2)}
	p.Prefer = func(available, must []string, n int) []string { return nil }
	w.give(three, &three.Spec.InitContainers[0], topology.Of(1), "b1", "b2")
	w.give(three, &three.Spec.Containers[0], 0, "b1")
	w.give(three, &three.Spec.Containers[1], 0, "b2")
	// A sidecar's do not.
	w.m.Release("three")
	always := corev1.ContainerRestartPolicyAlways
	three.Spec.InitContainers[0].RestartPolicy = &always
	w.give(three, &three.Spec.InitContainers[0], topology.Of(1), "b1", "b2")
	w.give(three, &three.Spec.Containers[0], topology.Of(0), "a0")
	w.give(three, &three.Spec.Containers[1], topology.Of(0), "c")
	w.m.Release("three")

	hints := w.m.Hints(podOf("four", 3), &podOf("four", 3).Spec.Containers[0])[gpu]
	want := []topology.Hint{{Nodes: topology.Of(1), Preferred: true}, {Nodes: topology.Of(0, 1)}}
	if !reflect.DeepEqual(hints, want) {
		t.Errorf("hints %+v, want %+v", hints, want)
	}
	if hints := w.m.Hints(podOf("five", 6), nil)[gpu]; hints == nil || len(hints) != 0 {
		t.Errorf("more than there are: %+v", hints)
	}
}

func TestPluginsAreChecked(t *testing.T) {
	w := open(t, t.TempDir())
	for name, ok := range map[string]bool{"example.com/gpu": true, "gpu": false, "kubernetes.io/gpu": false, "x.kubernetes.io/y": false, "a b/c": false} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := registration{m: w.m}
	for _, req := range []*pluginapi.RegisterRequest{
		{Version: "v9", Endpoint: "x.sock", ResourceName: gpu}, {Version: "v1beta1", Endpoint: "../x.sock", ResourceName: gpu}, {Version: "v1beta1", Endpoint: "x.sock", ResourceName: "gpu"},
	} {
		if _, err := r.Register(t.Context(), req); err == nil {
			t.Errorf("%v was accepted", req)
		}
	}
	p := &devicetest.Plugin{Fail: func(m string) error { return errors.New("no " + m) }}
	p.Set(devicetest.Device("g0"))
	w.plugin(p)
	one := podOf("one", 1)
	if err := w.m.Allocate(one, &one.Spec.Containers[0], 0); err == nil || !strings.Contains(err.Error(), "no Allocate") {
		t.Errorf("a plugin that fails: %v", err)
	}
	w.has("one", "a")
}
