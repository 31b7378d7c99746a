package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/datapath/spec"
)

// patience bounds every wait; nothing takes nearly as long.
const patience = 10 * time.Second

// plane is a data path whose Set can be held up.
type plane struct {
	mu   sync.Mutex
	held chan struct{} // nil: not held
	sets chan spec.State
}

func newPlane() *plane { return &plane{sets: make(chan spec.State, 1024)} }

func (p *plane) hold() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := make(chan struct{})
	p.held = held
	return func() {
		p.mu.Lock()
		p.held = nil
		p.mu.Unlock()
		close(held)
	}
}

// Set implements Dataplane.
func (p *plane) Set(ctx context.Context, s spec.State) error {
	p.mu.Lock()
	held := p.held
	p.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.sets <- s
	return nil
}

// Connections implements Dataplane.
func (p *plane) Connections(context.Context, netip.Addr) (int, time.Time, error) {
	return 0, time.Time{}, nil
}

// cluster is an API with a service of one pod.
type cluster struct {
	t   *testing.T
	api *clienttest.Fake
	pod *corev1.Pod
}

func newCluster(t *testing.T, nodes ...string) *cluster {
	c := &cluster{t: t, api: clienttest.New()}
	c.pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u", Labels: map[string]string{"app": "x"}},
		Status:     corev1.PodStatus{PodIP: "10.0.0.2", PodIPs: []corev1.PodIP{{IP: "10.0.0.2"}}},
	}
	for _, n := range nodes {
		c.node(n, corev1.ConditionTrue)
	}
	c.create(client.Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "x"}, ClusterIP: "10.1.0.1", ClusterIPs: []string{"10.1.0.1"}, Ports: []corev1.ServicePort{{Port: 80}}},
	})
	c.create(client.EndpointSlices, c.slice(true, false))
	return c
}

func (c *cluster) create(r client.Resource, o client.Object) {
	c.t.Helper()
	if _, err := c.api.Create(c.t.Context(), client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}, o); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) node(name string, ready corev1.ConditionStatus) {
	c.t.Helper()
	c.create(client.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}})
	c.create(client.Leases, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}})
}

func (c *cluster) slice(ready, terminating bool) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		Ports:      []discoveryv1.EndpointPort{{Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP), Name: ptr.To("")}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}, TargetRef: &corev1.ObjectReference{UID: "u"},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Terminating: &terminating}}},
	}
}

func (c *cluster) update(s *discoveryv1.EndpointSlice) {
	c.t.Helper()
	if _, err := c.api.Update(c.t.Context(), client.Key{Resource: client.EndpointSlices, Namespace: "ns", Name: s.Name}, s); err != nil {
		c.t.Fatal(err)
	}
}

// run starts a node's Network; it has applied the first state on return.
func (c *cluster) run(node string, p *plane, remote bool) *Network {
	c.t.Helper()
	n := New(Config{NodeName: node, Client: c.api, Dataplane: p, Remote: remote, Clock: clock.RealClock{}, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
	})
	select {
	case <-p.sets:
	case <-time.After(patience):
		c.t.Fatalf("node %s has not set its data path", node)
	}
	return n
}

// published blocks until a node's lease has the annotation.
func (c *cluster) published(node string) {
	c.t.Helper()
	seen := make(chan struct{})
	var once sync.Once
	defer c.api.Cache(client.Leases, "metadata.name="+node).Subscribe(func(e client.Event) {
		if e.Object.GetAnnotations()[AnnotationApplied] != "" {
			once.Do(func() { close(seen) })
		}
	})()
	select {
	case <-seen:
	case <-time.After(patience):
		c.t.Fatalf("node %s has published nothing", node)
	}
}

// A pod is drained only when the data paths of all Ready nodes are without it,
// also if its slice has changed again since.
func TestDrainAwaitsEveryNode(t *testing.T) {
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprintf("remote %v", remote), func(t *testing.T) {
			c := newCluster(t, "a", "b")
			a, other := c.run("a", newPlane(), remote), newPlane()
			c.run("b", other, !remote)
			c.published("b")
			release := other.hold()
			c.update(c.slice(false, true))
			again := c.slice(false, true)
			again.Endpoints = append(again.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0.3"}, TargetRef: &corev1.ObjectReference{UID: "v"}})
			c.update(again)

			soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := a.Drain(soon, c.pod); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("drained although node b still sends connections: %v", err)
			}
			release()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := a.Drain(ctx, c.pod); err != nil {
				t.Errorf("drain after node b has let go: %v", err)
			}
		})
	}
}

// Nobody waits for a node that is not Ready, nor for one with another data path.
func TestDrainPassesOthersBy(t *testing.T) {
	c := newCluster(t, "a", "foreign")
	c.node("dead", corev1.ConditionUnknown)
	k := client.Key{Resource: client.Leases, Namespace: corev1.NamespaceNodeLease, Name: "dead"}
	lease, err := client.Get[*coordinationv1.Lease](t.Context(), c.api, k)
	if err != nil {
		t.Fatal(err)
	}
	lease = lease.DeepCopy()
	lease.Annotations = map[string]string{AnnotationApplied: "1"}
	if _, err := c.api.Update(t.Context(), k, lease); err != nil {
		t.Fatal(err)
	}
	a := c.run("a", newPlane(), false)
	c.update(c.slice(false, true))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.Drain(ctx, c.pod); err != nil {
		t.Error(err)
	}
}

// An only node writes nothing for others until there are others.
func TestOnlyNodePublishesNothing(t *testing.T) {
	c := newCluster(t, "a")
	a := c.run("a", newPlane(), false)
	c.update(c.slice(false, true))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.Drain(ctx, c.pod); err != nil {
		t.Error(err)
	}
	lease, err := client.Get[*coordinationv1.Lease](t.Context(), c.api, client.Key{Resource: client.Leases, Namespace: corev1.NamespaceNodeLease, Name: "a"})
	if err != nil || len(lease.Annotations) > 0 {
		t.Errorf("lease of the only node: %v, %v", lease, err)
	}
	c.node("b", corev1.ConditionTrue)
	c.published("a")
}
