package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/critest"
	"knarr.dev/knarr/agent/eviction"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
)

// events keeps what was recorded.
type events struct {
	mu   sync.Mutex
	all  []string
	wake chan struct{}
}

func (e *events) Event(obj client.Object, eventType, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, fmt.Sprintf("%s %s %s", eventType, reason, message))
	close(e.wake)
	e.wake = make(chan struct{})
}

func (e *events) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.all...)
}

// world is an agent with everything around it.
type world struct {
	t      testing.TB
	api    *clienttest.Fake
	cri    *critest.Runtime
	events *events
	cfg    Config
	stop   func()
}

type option func(*Config)

func withClock(c clock.WithDelayedExecution) option { return func(cfg *Config) { cfg.Clock = c } }

func newWorld(t testing.TB, opts ...option) *world {
	t.Helper()
	w := &world{t: t, api: clienttest.New(), cri: critest.New(), events: &events{wake: make(chan struct{})}}
	w.cfg = Config{NodeName: "n1", Client: w.api, CRI: w.cri.Client(t), Recorder: w.events, Root: t.TempDir(), LogRoot: t.TempDir(),
		NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Version: "v1.36.3+knarr",
		Observe: func() eviction.Observation { return nil }} // this machine's troubles are not the test's
	for _, o := range opts {
		o(&w.cfg)
	}
	root := w.cfg.Root
	t.Cleanup(func() { // what pods that a test leaves running have mounted
		b, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/") {
				_ = unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
	})
	return w
}

// run starts an agent; the returned function and the end of the test stop it.
func (w *world) run() *Agent {
	w.t.Helper()
	a, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("agent: %v", err)
			}
		})
	}
	w.t.Cleanup(w.stop)
	return a
}

// pod creates a pod that is bound to the node.
func (w *world) pod(name string, change func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec: corev1.PodSpec{NodeName: "n1", RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
			Containers: []corev1.Container{{Name: "c", Image: "busybox:1", ImagePullPolicy: corev1.PullIfNotPresent,
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	if change != nil {
		change(p)
	}
	obj, err := w.api.Create(context.Background(), client.Key{Resource: client.Pods, Namespace: p.Namespace}, p)
	if err != nil {
		w.t.Fatal(err)
	}
	return obj.(*corev1.Pod)
}

// wait blocks until the pod satisfies ok and returns it.
func (w *world) wait(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	w.t.Helper()
	found := make(chan *corev1.Pod, 1)
	var last *corev1.Pod
	var mu sync.Mutex
	cancel := w.api.Cache(client.Pods, "").Subscribe(func(e client.Event) {
		p := e.Object.(*corev1.Pod)
		if p.Name != name {
			return
		}
		if e.Type == client.Deleted {
			p = nil
		}
		mu.Lock()
		last = p
		mu.Unlock()
		if ok(p) {
			select {
			case found <- p:
			default:
			}
		}
	})
	defer cancel()
	if _, there := w.api.Cache(client.Pods, "").Get("default", name); !there && ok(nil) {
		return nil
	}
	select {
	case p := <-found:
		return p
	case <-time.After(10 * time.Second):
		mu.Lock()
		defer mu.Unlock()
		var st any
		if last != nil {
			st = last.Status
		}
		w.t.Fatalf("pod %s never became %s; last status:\n%+v\nevents:\n%s\ncalls: %v", name, what, st, strings.Join(w.events.list(), "\n"), w.cri.Calls())
		return nil
	}
}

func (w *world) gone(name string) {
	w.t.Helper()
	w.wait(name, "gone", func(p *corev1.Pod) bool { return p == nil })
}

// event waits for an event that begins so.
func (w *world) event(prefix string) {
	w.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		w.events.mu.Lock()
		wake := w.events.wake
		for _, e := range w.events.all {
			if strings.HasPrefix(e, prefix) {
				w.events.mu.Unlock()
				return
			}
		}
		w.events.mu.Unlock()
		select {
		case <-wake:
		case <-deadline:
			w.t.Fatalf("no event %q among\n%s", prefix, strings.Join(w.events.list(), "\n"))
		}
	}
}

// runtime waits until the runtime satisfies ok.
func (w *world) runtime(what string, ok func(*critest.Runtime) bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.cri.Wait(ctx, ok); err != nil {
		w.t.Fatalf("the runtime never had %s; calls: %v\nevents:\n%s", what, w.cri.Calls(), strings.Join(w.events.list(), "\n"))
	}
}

func (w *world) delete(name string, grace *int64) {
	w.t.Helper()
	if err := w.api.Delete(context.Background(), client.Key{Resource: client.Pods, Namespace: "default", Name: name}, metav1.DeleteOptions{GracePeriodSeconds: grace}); err != nil {
		w.t.Fatal(err)
	}
}

func running(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodRunning }

func ready(p *corev1.Pod) bool { return condition(p, corev1.PodReady) == corev1.ConditionTrue }

func condition(p *corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	if p == nil {
		return ""
	}
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

func waiting(reason string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == reason
	}
}

func (w *world) create(r client.Resource, obj client.Object) {
	w.t.Helper()
	if _, err := w.api.Create(context.Background(), client.Key{Resource: r, Namespace: obj.GetNamespace()}, obj); err != nil {
		w.t.Fatal(err)
	}
}

// node waits until the node is Ready.
func (w *world) node() *corev1.Node {
	w.t.Helper()
	found := make(chan *corev1.Node, 64)
	defer w.api.Cache(client.Nodes, "").Subscribe(func(e client.Event) {
		if n := e.Object.(*corev1.Node); len(n.Status.Conditions) == 4 && len(found) == 0 {
			found <- n
		}
	})()
	select {
	case n := <-found:
		return n
	case <-time.After(10 * time.Second):
		w.t.Fatal("the node was not registered")
		return nil
	}
}
