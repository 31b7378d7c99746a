// Package node speaks for the machine: it registers the Node object, keeps its
// status true, and renews its lease.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/api/check"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/cri"
)

// How often a node is heard of: its lease always, its status when nothing
// changes, and how often its own state is looked at.
const (
	leaseRenewal   = 10 * time.Second
	leaseSeconds   = 40
	statusInterval = 5 * time.Minute
	checkInterval  = 10 * time.Second
	stuckAfter     = 3 * time.Minute
	firstRetry     = 50 * time.Millisecond
	maxRetry       = 7 * time.Second
)

// Config is what a Reporter needs.
type Config struct {
	Name     string
	Client   client.Interface
	CRI      *cri.Client
	Recorder client.Recorder
	IPs      []string
	PodCIDR  netip.Prefix // of the node's pods; invalid: the spec is left to others
	Labels   map[string]string
	Taints   []corev1.Taint // of a node that is made
	Capacity corev1.ResourceList
	// Reserved is kept back from pods; of memory at least what eviction needs is.
	Reserved corev1.ResourceList
	MaxPods  int
	Info     corev1.NodeSystemInfo
	Version  string
	Port     int32 // of the kubelet API; 0: none
	// Extended tells what plugins add to capacity and allocatable; nil: nothing.
	Extended func() (capacity, allocatable corev1.ResourceList)
	// Pressure tells what the node is short of; nil: nothing ever.
	Pressure func() map[corev1.NodeConditionType]bool
	// Ending tells whether the machine is about to go down; nil: it never is.
	Ending func() bool
	Clock  clock.WithDelayedExecution
	Log    *slog.Logger
}

// Reporter keeps the Node object. Make one with New.
type Reporter struct {
	cfg         Config
	allocatable corev1.ResourceList

	mu    sync.Mutex
	node  *corev1.Node // last known state, nil before registration
	wrote time.Time    // last status write
	began time.Time    // when the machine was last looked at

	changed    chan struct{} // what concerns the report has changed
	registered chan struct{} // closed once node is known
	once       sync.Once
	started    sync.Once // the event that says so
}

// errNotReady makes the reporter look again soon.
var errNotReady = errors.New("the node is not ready yet")

// New returns a reporter.
func New(cfg Config) *Reporter {
	r := &Reporter{cfg: cfg, changed: make(chan struct{}, 1), registered: make(chan struct{})}
	r.cfg.Capacity = maps.Clone(cfg.Capacity)
	if _, ok := r.cfg.Capacity[corev1.ResourcePods]; !ok {
		r.cfg.Capacity[corev1.ResourcePods] = quantity(int64(cfg.MaxPods))
	}
	r.allocatable = allocatable(r.cfg.Capacity, cfg.Reserved)
	return r
}

// Allocatable is what pods may use of the node.
func (r *Reporter) Allocatable() corev1.ResourceList { return r.allocatable }

// Node returns the last known Node object, nil before it was registered.
func (r *Reporter) Node() *corev1.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.node
}

// Alive returns an error once the node has not been looked at for long, as when its
// runtime does not answer.
func (r *Reporter) Alive() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if age := r.cfg.Clock.Since(r.began); !r.began.IsZero() && age > stuckAfter {
		return fmt.Errorf("the node was last looked at %s ago", age.Round(time.Second))
	}
	return nil
}

// Run registers the node, then reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	defer r.cfg.Client.Cache(client.Nodes, "metadata.name="+r.cfg.Name).Subscribe(r.follow)()
	g.Go(func() error { return r.retry(ctx, checkInterval, r.changed, r.report) })
	g.Go(func() error {
		select {
		case <-r.registered:
		case <-ctx.Done():
			return ctx.Err()
		}
		return r.retry(ctx, leaseRenewal, nil, r.renew)
	})
	return g.Wait()
}

// follow takes over what others write to the node: the node controller says that
// the node is lost when it was not heard of, and somebody may delete it.
func (r *Reporter) follow(e client.Event) {
	n, ok := e.Object.(*corev1.Node)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.node
	switch {
	case have == nil: // register finds out
		return
	case e.Type == client.Deleted:
		if have.UID != n.UID {
			return
		}
		r.node = nil
	case !newer(n, have):
		return
	default:
		r.node = n
		if readiness(n) == readiness(have) {
			return
		}
	}
	r.Changed()
}

// Changed has the node report at once, because what it says of itself has changed.
func (r *Reporter) Changed() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// newer compares revisions; those of another server's numbering count as newer.
func newer(a, b *corev1.Node) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX != nil || errY != nil || x > y
}

func readiness(n *corev1.Node) corev1.ConditionStatus {
	for i := range n.Status.Conditions {
		if c := &n.Status.Conditions[i]; c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// retry calls fn every interval and when now is signalled, sooner after a failure.
func (r *Reporter) retry(ctx context.Context, every time.Duration, now <-chan struct{}, fn func(context.Context) error) error {
	delay := firstRetry
	for {
		err := fn(ctx)
		wait := every
		if err != nil && ctx.Err() == nil {
			if !errors.Is(err, errNotReady) {
				r.cfg.Log.Warn("the node could not report; it will be tried again", "node", r.cfg.Name, "error", err)
			}
			wait, delay = delay, min(2*delay, maxRetry)
		} else {
			delay = firstRetry
		}
		t := r.cfg.Clock.NewTimer(wait)
		select {
		case <-t.C():
		case <-now:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

func (r *Reporter) key() client.Key { return client.Key{Resource: client.Nodes, Name: r.cfg.Name} }

// report brings the Node object up to date.
func (r *Reporter) report(ctx context.Context) error {
	r.mu.Lock()
	r.began = r.cfg.Clock.Now()
	r.mu.Unlock()
	want := r.observe(ctx)
	if r.Node() == nil {
		if err := r.register(ctx, want); err != nil {
			return err
		}
	}
	have := r.Node()
	status := r.merge(have, want)
	now := r.cfg.Clock.Now()
	result := error(nil)
	for _, c := range want.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			result = errNotReady
		}
	}
	if !changed(have.Status, status) && now.Sub(r.wrote) < statusInterval {
		return result
	}
	got, err := r.patch(ctx, have, status)
	if apierrors.IsNotFound(err) {
		// Deleted by somebody: register anew.
		r.set(nil)
		return err
	}
	if err != nil {
		return err
	}
	r.wrote = now
	r.tell(got, have.Status, status)
	r.set(got)
	if readiness(got) != readiness(&corev1.Node{Status: status}) {
		r.Changed() // somebody else has written in between, and that word is not the last
	}
	return result
}

func (r *Reporter) set(n *corev1.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node = n
	if n != nil {
		r.once.Do(func() { close(r.registered) })
	}
}

// register makes the Node object, or takes over the one that is there.
func (r *Reporter) register(ctx context.Context, status corev1.NodeStatus) error {
	labels := map[string]string{
		corev1.LabelHostname: r.cfg.Name, corev1.LabelArchStable: runtime.GOARCH, corev1.LabelOSStable: runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH, "beta.kubernetes.io/os": runtime.GOOS,
	}
	maps.Copy(labels, r.cfg.Labels)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: r.cfg.Name, Labels: labels}, Status: r.merge(&corev1.Node{}, status)}
	n.Spec.Taints = r.cfg.Taints
	if r.cfg.PodCIDR.IsValid() {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = r.cfg.PodCIDR.String(), []string{r.cfg.PodCIDR.String()}
	}
	n.Annotations = map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
	obj, err := r.cfg.Client.Create(ctx, r.key(), n)
	if err == nil {
		if err := r.adopt(obj); err != nil {
			return err
		}
		r.tell(obj, corev1.NodeStatus{}, n.Status)
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("register node %s: %w", r.cfg.Name, err)
	}
	have, err := client.Get[*corev1.Node](ctx, r.cfg.Client, r.key())
	if err != nil {
		return fmt.Errorf("read node %s: %w", r.cfg.Name, err)
	}
	missing := map[string]string{}
	for k, v := range labels {
		if have.Labels[k] != v {
			missing[k] = v
		}
	}
	change := map[string]any{}
	if len(missing) > 0 {
		change["metadata"] = map[string]any{"labels": missing}
	}
	if r.cfg.PodCIDR.IsValid() && have.Spec.PodCIDR == "" {
		change["spec"] = map[string]any{"podCIDR": r.cfg.PodCIDR.String(), "podCIDRs": []string{r.cfg.PodCIDR.String()}}
	}
	if len(change) > 0 {
		data, err := json.Marshal(change)
		if err != nil {
			return err
		}
		obj, err := r.cfg.Client.Patch(ctx, r.key(), client.Patch{Type: types.MergePatchType, Data: data})
		if err != nil {
			return fmt.Errorf("bring node %s up to date: %w", r.cfg.Name, err)
		}
		return r.adopt(obj)
	}
	return r.adopt(have)
}

func (r *Reporter) adopt(obj client.Object) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("register node %s: server answered a %T", r.cfg.Name, obj)
	}
	r.set(n)
	r.started.Do(func() { r.cfg.Recorder.Event(n, corev1.EventTypeNormal, "Starting", "Starting kubelet.") })
	return nil
}

// changed compares statuses, heartbeats aside.
func changed(a, b corev1.NodeStatus) bool {
	a, b = *a.DeepCopy(), *b.DeepCopy()
	for _, s := range []*corev1.NodeStatus{&a, &b} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return !check.Same(a, b)
}

func (r *Reporter) patch(ctx context.Context, have *corev1.Node, status corev1.NodeStatus) (*corev1.Node, error) {
	next := have.DeepCopy()
	next.Status = status
	before, err := json.Marshal(have)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(next)
	if err != nil {
		return nil, err
	}
	data, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Node{})
	if err != nil {
		return nil, fmt.Errorf("compute the status patch of node %s: %w", r.cfg.Name, err)
	}
	obj, err := r.cfg.Client.Patch(ctx, r.key().Sub("status"), client.Patch{Type: types.StrategicMergePatchType, Data: data})
	if err != nil {
		return nil, fmt.Errorf("write the status of node %s: %w", r.cfg.Name, err)
	}
	n, ok := obj.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("write the status of node %s: server answered a %T", r.cfg.Name, obj)
	}
	return n, nil
}
