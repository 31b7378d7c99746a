package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/datapath/spec"
)

// Dataplane is what the node's data path offers; package datapath provides it.
type Dataplane interface {
	// Set makes the kernel's state equal to s; when it returns, the kernel has it.
	Set(ctx context.Context, s spec.State) error
	// Connections counts the established TCP connections into a pod, and tells
	// when one of them last carried data.
	Connections(ctx context.Context, pod netip.Addr) (n int, lastActive time.Time, err error)
}

// Config is what a Network is made of.
type Config struct {
	NodeName  string
	Client    client.Interface
	Dataplane Dataplane
	// Remote: the API is in another process, so that the list of all nodes is not
	// at hand.
	Remote bool
	Clock  clock.Clock
	Log    *slog.Logger
}

// Network translates services for one node.
type Network struct {
	cfg      Config
	services client.Cache
	slices   client.Cache
	pods     client.Cache // of this node
	nodes    client.Cache // nil if Remote
	kick     chan struct{}
	applied  chan struct{} // something is to be published

	mu       sync.Mutex
	dirty    map[types.NamespacedName]bool
	ported   map[types.NamespacedName]bool // pods whose host ports are to be compiled
	barriers []chan struct{}
	seen     uint64 // last revision of slices that an event told
	tell     bool   // other nodes wait for it
	inForce  uint64 // last revision of slices that the kernel has

	// only Run's goroutine uses these
	compiled map[types.NamespacedName][]spec.Service
	ports    map[types.NamespacedName][]spec.Service // by pod
	failed   string
}

// New returns a Network; Run keeps the data path current.
func New(cfg Config) *Network {
	n := &Network{
		cfg: cfg, services: cfg.Client.Cache(client.Services, ""), slices: cfg.Client.Cache(client.EndpointSlices, ""),
		pods: cfg.Client.Cache(client.Pods, "spec.nodeName="+cfg.NodeName),
		kick: make(chan struct{}, 1), applied: make(chan struct{}, 1), tell: true, dirty: map[types.NamespacedName]bool{}, ported: map[types.NamespacedName]bool{},
		compiled: map[types.NamespacedName][]spec.Service{}, ports: map[types.NamespacedName][]spec.Service{},
	}
	if !cfg.Remote {
		n.nodes = cfg.Client.Cache(client.Nodes, "")
	}
	return n
}

// Run applies changes until ctx ends; the kernel's state stays.
func (n *Network) Run(ctx context.Context) error {
	for _, c := range []client.Cache{n.services, n.slices, n.pods} {
		if err := c.WaitSynced(ctx); err != nil {
			return fmt.Errorf("services of the data path: %w", err)
		}
	}
	// The first Set must be whole: an empty one would cut off what runs.
	n.services.List("", nil, func(o client.Object) bool {
		n.mark(types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()})
		return true
	})
	n.pods.List("", nil, func(o client.Object) bool {
		n.notePod(client.Event{Object: o})
		return true
	})
	defer n.services.Subscribe(func(e client.Event) {
		n.mark(types.NamespacedName{Namespace: e.Object.GetNamespace(), Name: e.Object.GetName()})
	})()
	defer n.slices.Subscribe(func(e client.Event) {
		n.noteSlice(e)
		n.mark(serviceOf(e.Object))
		if e.Old != nil {
			n.mark(serviceOf(e.Old))
		}
	})()
	defer n.pods.Subscribe(n.notePod)()
	if n.nodes != nil {
		// The first other node makes this one worth waiting for.
		defer n.nodes.Subscribe(func(e client.Event) {
			if e.Type == client.Added {
				signal(n.applied)
			}
		})()
	}
	var publisher sync.WaitGroup
	defer publisher.Wait()
	publisher.Go(func() { n.publish(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.kick:
		}
		n.apply(ctx)
	}
}

func serviceOf(o client.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetLabels()[discoveryv1.LabelServiceName]}
}

func (n *Network) mark(key types.NamespacedName) {
	if key.Name == "" {
		return
	}
	n.mu.Lock()
	n.dirty[key] = true
	n.mu.Unlock()
	n.wake()
}

// notePod marks a pod that takes ports of the node.
func (n *Network) notePod(e client.Event) {
	pod, ok := e.Object.(*corev1.Pod)
	if !ok || !takesHostPorts(pod) {
		return
	}
	n.mu.Lock()
	n.ported[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = true
	n.mu.Unlock()
	n.wake()
}

func (n *Network) wake() { signal(n.kick) }

// apply compiles what changed and sets the whole state.
func (n *Network) apply(ctx context.Context) {
	n.mu.Lock()
	dirty, barriers := n.dirty, n.barriers
	ported := n.ported
	n.dirty, n.ported, n.barriers = map[types.NamespacedName]bool{}, map[types.NamespacedName]bool{}, nil
	seen, tell := n.seen, n.tell
	n.tell = false
	n.mu.Unlock()
	for key := range dirty {
		n.compile(key)
	}
	for key := range ported {
		n.compilePorts(key)
	}
	var state spec.State
	for _, all := range []map[types.NamespacedName][]spec.Service{n.compiled, n.ports} {
		for _, list := range all {
			state.Services = append(state.Services, list...)
		}
	}
	err := n.cfg.Dataplane.Set(ctx, state)
	n.report(err)
	n.mu.Lock()
	n.inForce = seen
	n.mu.Unlock()
	if tell {
		signal(n.applied)
	}
	for _, b := range barriers {
		close(b)
	}
}

// report logs a failure once, until it changes or ends. What Set could not carry
// (an unsupported protocol, say) is left out; all else is in force.
func (n *Network) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != n.failed && text != "" {
		n.cfg.Log.Warn("data path: some services are not in force", "error", err)
	}
	n.failed = text
}

func (n *Network) compile(key types.NamespacedName) {
	svc, ok := client.Cached[*corev1.Service](n.services, key.Namespace, key.Name)
	if !ok {
		delete(n.compiled, key)
		return
	}
	list := Compile(svc, n.slicesOf(key), n.cfg.NodeName)
	if len(list) == 0 {
		delete(n.compiled, key)
		return
	}
	n.compiled[key] = list
}

func (n *Network) compilePorts(key types.NamespacedName) {
	pod, ok := client.Cached[*corev1.Pod](n.pods, key.Namespace, key.Name)
	var list []spec.Service
	if ok {
		list = HostPorts(pod)
	}
	if len(list) == 0 {
		delete(n.ports, key)
		return
	}
	n.ports[key] = list
}

func (n *Network) slicesOf(key types.NamespacedName) []*discoveryv1.EndpointSlice {
	return client.ListCached[*discoveryv1.EndpointSlice](n.slices, key.Namespace, labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: key.Name}))
}

// sync blocks until the kernel has the state of the given services as the caches
// show them now.
func (n *Network) sync(ctx context.Context, keys []types.NamespacedName) error {
	done := make(chan struct{})
	n.mu.Lock()
	for _, k := range keys {
		n.dirty[k] = true
	}
	n.barriers = append(n.barriers, done)
	n.mu.Unlock()
	n.wake()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
