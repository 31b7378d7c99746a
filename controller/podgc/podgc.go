// Package podgc removes pods that nobody else can remove: those of nodes that are
// gone or out of service, unscheduled ones that are being deleted, and the oldest
// ended ones beyond a threshold.
package podgc

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// DefaultThreshold is how many ended pods may stay.
const DefaultThreshold = 12500

// quarantine is how long a node must be gone before its pods are removed: the
// node may be registering again.
const quarantine = 40 * time.Second

// ended is the key of the sweep over ended pods; other keys are pods.
var ended = engine.Key{Name: "ended-pods"}

// New declares the controller.
func New(threshold int) engine.Controller {
	return engine.Controller{
		Name: "pod-garbage-collector-controller",
		Watches: []engine.Watch{
			{Resource: client.Pods, Keys: podKeys},
			{Resource: client.Nodes, Keys: nodeKeys},
		},
		Writes: []engine.Write{
			{Resource: client.Pods, Verbs: []string{"delete"}},
			{Resource: client.Pods, Subresource: "status", Verbs: []string{"patch"}},
		},
		New: func(env *engine.Env) engine.Reconcile {
			c := &collector{env: env, threshold: threshold, missing: map[engine.Key]time.Time{}}
			return c.reconcile
		},
	}
}

func podKeys(env *engine.Env, ev client.Event) []engine.Key {
	pod := ev.Object.(*corev1.Pod)
	if ev.Type == client.Deleted {
		return nil
	}
	var keys []engine.Key
	if old, ok := ev.Old.(*corev1.Pod); engine.Finished(pod) && (!ok || !engine.Finished(old)) {
		keys = append(keys, ended)
	}
	if pod.Spec.NodeName == "" {
		if pod.DeletionTimestamp != nil {
			keys = append(keys, engine.KeyOf(pod))
		}
		return keys
	}
	node, ok := client.Cached[*corev1.Node](env.Cache(client.Nodes), "", pod.Spec.NodeName)
	if !ok || (pod.DeletionTimestamp != nil && outOfService(node)) {
		keys = append(keys, engine.KeyOf(pod))
	}
	return keys
}

func nodeKeys(env *engine.Env, ev client.Event) []engine.Key {
	node := ev.Object.(*corev1.Node)
	if ev.Type != client.Deleted && !outOfService(node) {
		return nil
	}
	var keys []engine.Key
	env.Cache(client.Pods).List("", nil, func(o client.Object) bool {
		if o.(*corev1.Pod).Spec.NodeName == node.Name {
			keys = append(keys, engine.KeyOf(o))
		}
		return true
	})
	return keys
}

func outOfService(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService }) && !nodeReady(n)
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

type collector struct {
	env       *engine.Env
	threshold int
	missing   map[engine.Key]time.Time // pods and since when their node is gone; one worker
}

func (c *collector) reconcile(ctx context.Context, key engine.Key) (time.Duration, error) {
	if key == ended {
		return 0, c.sweep(ctx)
	}
	pod, ok := client.Cached[*corev1.Pod](c.env.Cache(client.Pods), key.Namespace, key.Name)
	if !ok {
		delete(c.missing, key)
		return 0, nil
	}
	if pod.Spec.NodeName == "" {
		if pod.DeletionTimestamp == nil {
			return 0, nil
		}
		return 0, c.remove(ctx, pod, "")
	}
	if node, ok := client.Cached[*corev1.Node](c.env.Cache(client.Nodes), "", pod.Spec.NodeName); ok {
		delete(c.missing, key)
		if pod.DeletionTimestamp != nil && outOfService(node) {
			return 0, c.remove(ctx, pod, "PodGC: node is out of service")
		}
		return 0, nil
	}
	since, ok := c.missing[key]
	if !ok {
		since = c.env.Clock.Now()
		c.missing[key] = since
	}
	if wait := quarantine - c.env.Clock.Since(since); wait > 0 {
		return wait, nil
	}
	_, err := c.env.Client.Get(ctx, client.Key{Resource: client.Nodes, Name: pod.Spec.NodeName})
	if err == nil {
		return 0, nil
	}
	if !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("looking for node %s: %w", pod.Spec.NodeName, err)
	}
	delete(c.missing, key)
	return 0, c.remove(ctx, pod, "PodGC: node no longer exists")
}

// remove deletes a pod at once, as failed by a disruption if why is given.
func (c *collector) remove(ctx context.Context, pod *corev1.Pod, why string) error {
	k := client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name}
	if why != "" && !engine.Finished(pod) {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": map[string]any{
			"phase": corev1.PodFailed,
			"conditions": []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC", Message: why,
				LastTransitionTime: metav1.NewTime(c.env.Clock.Now())}}}})
		if err != nil {
			return err
		}
		if _, err := c.env.Client.Patch(ctx, k.Sub("status"), client.Patch{Type: types.StrategicMergePatchType, Data: patch}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("marking %s as disrupted: %w", k, err)
		}
	}
	zero := int64(0)
	err := c.env.Client.Delete(ctx, k, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting %s: %w", k, err)
	}
	return nil
}

// sweep deletes the oldest ended pods beyond the threshold.
func (c *collector) sweep(ctx context.Context) error {
	var pods []*corev1.Pod
	c.env.Cache(client.Pods).List("", nil, func(o client.Object) bool {
		if pod := o.(*corev1.Pod); engine.Finished(pod) {
			pods = append(pods, pod)
		}
		return true
	})
	if c.threshold <= 0 || len(pods) <= c.threshold {
		return nil
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	excess := pods[:len(pods)-c.threshold]
	_, err := engine.Parallel(len(excess), func(i int) error { return c.remove(ctx, excess[i], "") })
	return err
}
