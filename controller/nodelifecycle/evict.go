package nodelifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// NewEviction declares the controller that deletes pods from nodes with
// NoExecute taints, when their tolerations end. Keys are pods.
func NewEviction() engine.Controller {
	return engine.Controller{
		Name: "taint-eviction-controller",
		Watches: []engine.Watch{
			{Resource: client.Nodes, Keys: func(env *engine.Env, ev client.Event) (keys []engine.Key) {
				if ev.Type == client.Deleted || len(noExecute(ev.Object.(*corev1.Node))) == 0 {
					return nil
				}
				env.Cache(client.Pods).List("", nil, func(o client.Object) bool {
					if o.(*corev1.Pod).Spec.NodeName == ev.Object.GetName() {
						keys = append(keys, engine.KeyOf(o))
					}
					return true
				})
				return keys
			}},
			{Resource: client.Pods, Keys: func(env *engine.Env, ev client.Event) []engine.Key {
				n, ok := client.Cached[*corev1.Node](env.Cache(client.Nodes), "", ev.Object.(*corev1.Pod).Spec.NodeName)
				if !ok || ev.Type == client.Deleted || len(noExecute(n)) == 0 {
					return nil
				}
				return engine.Self(env, ev)
			}},
		},
		Writes: []engine.Write{
			{Resource: client.Pods, Verbs: []string{"delete"}},
			{Resource: client.Pods, Subresource: "status", Verbs: []string{"patch"}},
		},
		Workers: 4,
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return evict(ctx, env, key) }
		},
	}
}

func noExecute(n *corev1.Node) (out []corev1.Taint) {
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

func evict(ctx context.Context, env *engine.Env, key engine.Key) (time.Duration, error) {
	pod, ok := client.Cached[*corev1.Pod](env.Cache(client.Pods), key.Namespace, key.Name)
	if !ok || pod.DeletionTimestamp != nil || pod.Spec.NodeName == "" {
		return 0, nil
	}
	n, ok := client.Cached[*corev1.Node](env.Cache(client.Nodes), "", pod.Spec.NodeName)
	if !ok {
		return 0, nil
	}
	now := env.Clock.Now()
	at, ever := evictAt(pod.Spec.Tolerations, noExecute(n), now)
	if !ever {
		return 0, nil
	}
	if wait := at.Sub(now); wait > 0 {
		return wait, nil
	}
	env.Recorder.Event(pod, corev1.EventTypeNormal, "TaintManagerEviction", fmt.Sprintf("Marking for deletion Pod %s/%s", pod.Namespace, pod.Name))
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": map[string]any{"conditions": []corev1.PodCondition{{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager", Message: "Taint manager: deleting due to NoExecute taint",
		LastTransitionTime: metav1.NewTime(now)}}}})
	if err != nil {
		return 0, err
	}
	k := client.Key{Resource: client.Pods, Namespace: pod.Namespace, Name: pod.Name}
	if _, err := env.Client.Patch(ctx, k.Sub("status"), client.Patch{Type: types.StrategicMergePatchType, Data: data}); err != nil && !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("marking %s as disrupted: %w", k, err)
	}
	if err := env.Client.Delete(ctx, k, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}}); err != nil && !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("evicting %s: %w", k, err)
	}
	return 0, nil
}

// evictAt is when a pod must leave: at once if a taint is not tolerated, else
// when the shortest of its limited tolerations ends.
func evictAt(tolerations []corev1.Toleration, taints []corev1.Taint, now time.Time) (at time.Time, ever bool) {
	for i := range taints {
		tolerated := false
		for _, t := range tolerations {
			if (t.Effect != "" && t.Effect != corev1.TaintEffectNoExecute) || (t.Key != "" && t.Key != taints[i].Key) ||
				(t.Operator != corev1.TolerationOpExists && t.Value != taints[i].Value) {
				continue
			}
			tolerated = true
			if t.TolerationSeconds == nil {
				continue
			}
			since := now
			if taints[i].TimeAdded != nil {
				since = taints[i].TimeAdded.Time
			}
			if end := since.Add(time.Duration(max(0, *t.TolerationSeconds)) * time.Second); !ever || end.Before(at) {
				at, ever = end, true
			}
		}
		if !tolerated {
			return now, true
		}
	}
	return at, ever
}
