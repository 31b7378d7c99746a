// Package replicaset keeps the wanted number of equal pods alive, for ReplicaSets
// and, by the same core, for ReplicationControllers.
package replicaset

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// burst is the most pods that one reconcile creates or deletes.
const burst = 500

// workload is what the core needs to know of either kind.
type workload struct {
	obj      client.Object
	kind     schema.GroupVersionKind
	key      client.Key
	replicas int32
	selector labels.Selector
	template *corev1.PodTemplateSpec
	minReady int32
	// write stores the status if it differs.
	write func(ctx context.Context, s status, f *failure, now time.Time) error
}

type controller struct {
	env  *engine.Env
	load func(engine.Key) (*workload, bool)
}

// New declares the ReplicaSet controller.
func New() engine.Controller {
	return declare("replicaset-controller", "ReplicaSet", client.ReplicaSets,
		func(o client.Object) labels.Selector { return engine.SelectorOf(o.(*appsv1.ReplicaSet).Spec.Selector) }, loadSet)
}

// NewReplication declares the ReplicationController controller.
func NewReplication() engine.Controller {
	return declare("replication-controller", "ReplicationController", client.ReplicationControllers,
		func(o client.Object) labels.Selector {
			return labels.SelectorFromSet(o.(*corev1.ReplicationController).Spec.Selector)
		}, loadReplication)
}

func declare(name, kind string, r client.Resource, selector func(client.Object) labels.Selector, load func(*engine.Env, engine.Key) (*workload, bool)) engine.Controller {
	return engine.Controller{
		Name: name,
		Watches: []engine.Watch{
			{Resource: r, Keys: engine.Self},
			{Resource: client.Pods, Keys: engine.OwnerOrMatch(kind, r, selector)},
		},
		Writes: []engine.Write{
			{Resource: client.Pods, Verbs: []string{"create", "delete", "patch"}},
			{Resource: r, Subresource: "status", Verbs: []string{"update"}},
		},
		Workers: 5,
		New: func(env *engine.Env) engine.Reconcile {
			c := &controller{env: env, load: func(k engine.Key) (*workload, bool) { return load(env, k) }}
			return c.reconcile
		},
	}
}

func (c *controller) reconcile(ctx context.Context, key engine.Key) (time.Duration, error) {
	w, ok := c.load(key)
	if !ok {
		return 0, nil
	}
	pending, again := c.env.Ledger.Pending(key)
	pods := client.ListCached[*corev1.Pod](c.env.Cache(client.Pods), key.Namespace, nil)
	mine, err := engine.Claim(ctx, c.env.Client, engine.Owning{
		Owner: w.obj, Kind: w.kind, Key: w.key, Selector: w.selector, Of: client.Pods,
		Adoptable: func(o client.Object) bool { return engine.Active(o.(*corev1.Pod)) },
	}, pods)
	if err != nil {
		return 0, err
	}
	mine = append(mine, engine.Unseen(pending, pods)...)
	var active []*corev1.Pod
	terminating := 0
	for _, p := range mine {
		switch {
		case engine.Active(p):
			active = append(active, p)
		case !engine.Finished(p):
			terminating++
		}
	}
	now := c.env.Clock.Now()
	var failed *failure
	var manageErr error
	if w.obj.GetDeletionTimestamp() == nil {
		failed, manageErr = c.manage(ctx, w, active, now)
	}
	s := count(active, terminating, w.template.Labels, w.minReady, now)
	if err := w.write(ctx, s, failed, now); err != nil && manageErr == nil {
		manageErr = fmt.Errorf("writing the status of %s: %w", w.key, err)
	}
	if s.soonest > 0 && (again == 0 || s.soonest < again) {
		again = s.soonest
	}
	return again, manageErr
}

// manage creates or deletes pods until there are as many as wanted.
func (c *controller) manage(ctx context.Context, w *workload, active []*corev1.Pod, now time.Time) (*failure, error) {
	diff := len(active) - int(w.replicas)
	switch {
	case diff < 0:
		_, err := engine.SlowStart(min(-diff, burst), func(int) error {
			pod := engine.PodFrom(w.template, w.obj.GetNamespace(), w.obj.GetName()+"-", *metav1.NewControllerRef(w.obj, w.kind))
			_, err := c.env.CreatePod(ctx, w.obj, pod)
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil // whatever is created now would be deleted again
			}
			return err
		})
		if err != nil {
			return &failure{"FailedCreate", err.Error()}, fmt.Errorf("creating pods of %s: %w", w.key, err)
		}
	case diff > 0:
		chosen := victims(active, c.related(w, active), min(diff, burst), now)
		if _, err := engine.Parallel(len(chosen), func(i int) error { return c.env.DeletePod(ctx, w.obj, chosen[i]) }); err != nil {
			return &failure{"FailedDelete", err.Error()}, err
		}
	}
	return nil, nil
}

// related returns the pods of all replica sets that share w's owner.
func (c *controller) related(w *workload, own []*corev1.Pod) []*corev1.Pod {
	ref := metav1.GetControllerOfNoCopy(w.obj)
	if ref == nil {
		return own
	}
	siblings := map[string]bool{}
	c.env.Cache(w.key.Resource).List(w.obj.GetNamespace(), nil, func(o client.Object) bool {
		if r := metav1.GetControllerOfNoCopy(o); r != nil && r.UID == ref.UID {
			siblings[string(o.GetUID())] = true
		}
		return true
	})
	var out []*corev1.Pod
	for _, p := range client.ListCached[*corev1.Pod](c.env.Cache(client.Pods), w.obj.GetNamespace(), nil) {
		if r := metav1.GetControllerOfNoCopy(p); r != nil && siblings[string(r.UID)] {
			out = append(out, p)
		}
	}
	return out
}
