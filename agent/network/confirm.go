package network

import (
	"context"
	"fmt"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/util/retry"

	"knarr.dev/knarr/client"
)

// AnnotationApplied is on a node's Lease: the resourceVersion up to which the
// node's data path has every change of EndpointSlices that took an endpoint away.
// An agent that stops a pod waits for those of all Ready nodes; a node without the
// annotation has another data path, and nobody waits for it.
const AnnotationApplied = "knarr.dev/endpoints-applied"

// republish is the pause after a failure to publish.
const republish = 100 * time.Millisecond

// revision of an object as a number, 0 if it is none.
func revision(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// noteSlice records one change of a slice. Others are told of what takes an
// endpoint away, and of all changes while an endpoint of the slice terminates: its
// agent waits for the slice as it sees it, which may be a later one.
func (n *Network) noteSlice(e client.Event) {
	now, _ := e.Object.(*discoveryv1.EndpointSlice)
	old, _ := e.Old.(*discoveryv1.EndpointSlice)
	tell := old != nil && (e.Type == client.Deleted || lost(old, now)) || now != nil && terminating(now)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = max(n.seen, revision(e.Object.GetResourceVersion()))
	n.tell = n.tell || tell
}

func isReady(e *discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }

func terminating(s *discoveryv1.EndpointSlice) bool {
	for i := range s.Endpoints {
		if t := s.Endpoints[i].Conditions.Terminating; t != nil && *t {
			return true
		}
	}
	return false
}

// lost tells whether an endpoint that was ready is not any more.
func lost(old, now *discoveryv1.EndpointSlice) bool {
	ready := map[string]bool{}
	for i := range now.Endpoints {
		if e := &now.Endpoints[i]; isReady(e) {
			for _, a := range e.Addresses {
				ready[a] = true
			}
		}
	}
	for i := range old.Endpoints {
		if e := &old.Endpoints[i]; isReady(e) {
			for _, a := range e.Addresses {
				if !ready[a] {
					return true
				}
			}
		}
	}
	return false
}

// alone tells whether this is the only node, so that nobody waits for it nor it
// for anybody. A node that would have to ask for that counts as one of several.
func (n *Network) alone() bool {
	if n.cfg.Remote {
		return false
	}
	count := 0
	n.nodes.List("", nil, func(client.Object) bool {
		count++
		return count < 2
	})
	return count < 2
}

// publish tells the other nodes what is applied, each time that tell is signalled,
// until ctx ends. What is asked for meanwhile is one write.
func (n *Network) publish(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.applied:
		}
		for n.publishOnce(ctx) != nil { // the lease may not be there yet
			select {
			case <-ctx.Done():
				return
			case <-n.cfg.Clock.After(republish):
			}
		}
	}
}

func (n *Network) publishOnce(ctx context.Context) error {
	if n.alone() {
		return nil
	}
	n.mu.Lock()
	value := strconv.FormatUint(n.inForce, 10)
	n.mu.Unlock()
	k := client.Key{Resource: client.Leases, Namespace: corev1.NamespaceNodeLease, Name: n.cfg.NodeName}
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		lease, err := client.Get[*coordinationv1.Lease](ctx, n.cfg.Client, k)
		if err != nil || lease.Annotations[AnnotationApplied] == value {
			return err
		}
		lease = lease.DeepCopy()
		if lease.Annotations == nil {
			lease.Annotations = map[string]string{}
		}
		lease.Annotations[AnnotationApplied] = value
		_, err = n.cfg.Client.Update(ctx, k, lease)
		return err
	})
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// awaitNodes blocks until every other Ready node has applied what this one shows
// of the services: endpoints that have left it are in nobody's data path then.
func (n *Network) awaitNodes(ctx context.Context, rev uint64) error {
	if n.alone() {
		return nil
	}
	// Asked for at need: a node that follows all nodes all the time costs the
	// server what few use.
	nodes := n.cfg.Client.Cache(client.Nodes, "")
	leases := n.cfg.Client.Cache(client.Leases, "metadata.namespace="+corev1.NamespaceNodeLease)
	changed := make(chan struct{}, 1)
	for _, c := range []client.Cache{nodes, leases} {
		defer c.Subscribe(func(client.Event) { signal(changed) })()
		if err := c.WaitSynced(ctx); err != nil {
			return err
		}
	}
	for {
		late := n.late(nodes, leases, rev)
		if late == "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("node %s has not confirmed that the pod is out of its data path: %w", late, ctx.Err())
		}
	}
}

// late names a Ready node that has not applied rev yet.
func (n *Network) late(nodes, leases client.Cache, rev uint64) (name string) {
	nodes.List("", nil, func(o client.Object) bool {
		node, ok := o.(*corev1.Node)
		if !ok || node.Name == n.cfg.NodeName || !nodeReady(node) {
			return true
		}
		lease, ok := client.Cached[*coordinationv1.Lease](leases, corev1.NamespaceNodeLease, node.Name)
		if !ok {
			return true
		}
		if applied, ok := lease.Annotations[AnnotationApplied]; ok && revision(applied) < rev {
			name = node.Name
		}
		return name == ""
	})
	return name
}

func nodeReady(n *corev1.Node) bool {
	for i := range n.Status.Conditions {
		if c := &n.Status.Conditions[i]; c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
