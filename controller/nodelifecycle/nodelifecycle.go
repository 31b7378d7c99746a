// Package nodelifecycle watches over nodes: one whose lease is not renewed
// becomes Unknown, nodes that are not ready are tainted, and pods that do not
// tolerate such a taint are evicted. Every wait is a timer.
package nodelifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// Grace is how long a node may be silent.
const Grace = 40 * time.Second

// New declares the controller of node states. Keys are nodes.
func New() engine.Controller {
	return engine.Controller{
		Name: "node-lifecycle-controller",
		Watches: []engine.Watch{
			{Resource: client.Nodes, Keys: engine.Self},
			{Resource: client.Leases, Keys: leaseKey},
			{Resource: client.Pods, Keys: lostPod},
		},
		Writes: []engine.Write{
			{Resource: client.Nodes, Verbs: []string{"update"}},
			{Resource: client.Nodes, Subresource: "status", Verbs: []string{"update"}},
			{Resource: client.Pods, Subresource: "status", Verbs: []string{"patch"}},
		},
		New: func(env *engine.Env) engine.Reconcile {
			k := &keeper{env: env, heard: map[string]heard{}}
			return k.reconcile
		},
	}
}

// leaseKey wakes for a node's sign of life, so that silence is counted from it.
func leaseKey(_ *engine.Env, ev client.Event) []engine.Key {
	if ev.Object.GetNamespace() != corev1.NamespaceNodeLease {
		return nil
	}
	return []engine.Key{{Name: ev.Object.GetName()}}
}

// lostPod wakes for a pod that came to a node that is not ready.
func lostPod(env *engine.Env, ev client.Event) []engine.Key {
	pod := ev.Object.(*corev1.Pod)
	if ev.Type == client.Deleted || pod.Spec.NodeName == "" || !engine.Ready(pod) {
		return nil
	}
	n, ok := client.Cached[*corev1.Node](env.Cache(client.Nodes), "", pod.Spec.NodeName)
	if !ok || ready(n) == corev1.ConditionTrue {
		return nil
	}
	return []engine.Key{{Name: n.Name}}
}

func condition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

func ready(n *corev1.Node) corev1.ConditionStatus {
	if c := condition(n, corev1.NodeReady); c != nil {
		return c.Status
	}
	return corev1.ConditionUnknown
}

// heard is the last sign of life of a node, by our own clock: clocks of machines
// differ.
type heard struct {
	lease string
	beat  metav1.Time
	at    time.Time
}

type keeper struct {
	env   *engine.Env
	heard map[string]heard // one worker
}

func (k *keeper) reconcile(ctx context.Context, key engine.Key) (time.Duration, error) {
	n, ok := client.Cached[*corev1.Node](k.env.Cache(client.Nodes), "", key.Name)
	if !ok {
		delete(k.heard, key.Name)
		return 0, nil
	}
	now := k.env.Clock.Now()
	silent := k.silence(n, now)
	if silent >= Grace {
		next := n.DeepCopy()
		next.Status.Conditions = unknown(n, metav1.NewTime(now))
		if !equality.Semantic.DeepEqual(n.Status.Conditions, next.Status.Conditions) {
			k.env.Recorder.Event(n, corev1.EventTypeNormal, "NodeNotReady", fmt.Sprintf("Node %s status is now: NodeNotReady", n.Name))
			obj, err := k.env.Client.Update(ctx, client.Key{Resource: client.Nodes, Name: n.Name, Subresource: "status"}, next)
			if err != nil {
				return 0, fmt.Errorf("marking node %s as unknown: %w", n.Name, err)
			}
			n = obj.(*corev1.Node)
		}
	}
	next := n.DeepCopy()
	next.Spec.Taints = taints(n, metav1.NewTime(now))
	if !equality.Semantic.DeepEqual(n.Spec.Taints, next.Spec.Taints) {
		if _, err := k.env.Client.Update(ctx, client.Key{Resource: client.Nodes, Name: n.Name}, next); err != nil {
			return 0, fmt.Errorf("tainting node %s: %w", n.Name, err)
		}
	}
	if ready(n) != corev1.ConditionTrue {
		if err := k.unreadyPods(ctx, n.Name, now); err != nil {
			return 0, err
		}
	}
	if silent >= Grace {
		return 0, nil // its lease wakes us
	}
	return Grace - silent, nil
}

// silence is how long nothing was heard of a node.
func (k *keeper) silence(n *corev1.Node, now time.Time) time.Duration {
	h, known := k.heard[n.Name]
	lease := ""
	if l, ok := client.Cached[*coordinationv1.Lease](k.env.Cache(client.Leases), corev1.NamespaceNodeLease, n.Name); ok && l.Spec.RenewTime != nil {
		lease = l.Spec.RenewTime.String()
	}
	var beat metav1.Time
	if c := condition(n, corev1.NodeReady); c != nil && c.Reason != "NodeStatusUnknown" {
		beat = c.LastHeartbeatTime
	} else {
		beat = h.beat
	}
	if !known || h.lease != lease || !h.beat.Equal(&beat) {
		h = heard{lease, beat, now}
		k.heard[n.Name] = h
	}
	return now.Sub(h.at)
}

// unknown is a silent node's conditions.
func unknown(n *corev1.Node, now metav1.Time) []corev1.NodeCondition {
	out := slices.Clone(n.Status.Conditions)
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		i := slices.IndexFunc(out, func(c corev1.NodeCondition) bool { return c.Type == t })
		switch {
		case i < 0:
			out = append(out, corev1.NodeCondition{Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
				Message: "Kubelet never posted node status.", LastHeartbeatTime: n.CreationTimestamp, LastTransitionTime: now})
		case out[i].Status != corev1.ConditionUnknown:
			out[i].Status, out[i].Reason, out[i].Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			out[i].LastTransitionTime = now
		}
	}
	return out
}

// taints is what a node's taints must be, given its conditions.
func taints(n *corev1.Node, now metav1.Time) []corev1.Taint {
	type rule struct {
		key    string
		effect corev1.TaintEffect
		on     bool
	}
	is := func(t corev1.NodeConditionType) bool {
		c := condition(n, t)
		return c != nil && c.Status == corev1.ConditionTrue
	}
	state := ready(n)
	rules := []rule{
		{corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule, state == corev1.ConditionFalse},
		{corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule, state == corev1.ConditionUnknown},
		{corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute, state == corev1.ConditionFalse},
		{corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute, state == corev1.ConditionUnknown},
		{corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule, is(corev1.NodeMemoryPressure)},
		{corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule, is(corev1.NodeDiskPressure)},
		{corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule, is(corev1.NodePIDPressure)},
		{corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule, is(corev1.NodeNetworkUnavailable)},
		{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule, n.Spec.Unschedulable},
	}
	if condition(n, corev1.NodeReady) == nil {
		rules = rules[4:] // it has just registered: nothing is known yet
	}
	out := slices.Clone(n.Spec.Taints)
	for _, r := range rules {
		i := slices.IndexFunc(out, func(t corev1.Taint) bool { return t.Key == r.key && t.Effect == r.effect })
		switch {
		case r.on && i < 0:
			t := corev1.Taint{Key: r.key, Effect: r.effect}
			if r.effect == corev1.TaintEffectNoExecute || strings.HasSuffix(r.key, "unschedulable") {
				t.TimeAdded = &now
			}
			out = append(out, t)
		case !r.on && i >= 0:
			out = slices.Delete(out, i, i+1)
		}
	}
	return out
}

// unreadyPods takes the pods of a node that is not ready out of service.
func (k *keeper) unreadyPods(ctx context.Context, node string, now time.Time) error {
	var pods []*corev1.Pod
	k.env.Cache(client.Pods).List("", nil, func(o client.Object) bool {
		if pod := o.(*corev1.Pod); pod.Spec.NodeName == node && engine.Ready(pod) {
			pods = append(pods, pod)
		}
		return true
	})
	_, err := engine.Parallel(len(pods), func(i int) error {
		pod := pods[i]
		c := *engine.Condition(pod, corev1.PodReady)
		c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now)
		data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": map[string]any{"conditions": []corev1.PodCondition{c}}})
		if err != nil {
			return err
		}
		key := client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name, Subresource: "status"}
		if _, err := k.env.Client.Patch(ctx, key, client.Patch{Type: types.StrategicMergePatchType, Data: data}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("marking %s as not ready: %w", key, err)
		}
		k.env.Recorder.Event(pod, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
		return nil
	})
	return err
}
