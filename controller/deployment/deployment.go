// Package deployment rolls pods out: it owns one ReplicaSet for each pod
// template and moves replicas from old ones to the newest, never below what must
// be available and never above what may exist.
//
//	template hash -> find or create the new ReplicaSet (sync.go)
//	               -> paused, or replicas changed: scale in proportion (scale.go)
//	               -> Recreate or RollingUpdate (rollout.go, arithmetic in rolling.go)
//	               -> conditions and deadline (status.go), old revisions (history.go)
package deployment

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

var kind = appsv1.SchemeGroupVersion.WithKind("Deployment")

// New declares the Deployment controller.
func New() engine.Controller {
	return engine.Controller{
		Name: "deployment-controller",
		Watches: []engine.Watch{
			{Resource: client.Deployments, Keys: engine.Self},
			{Resource: client.ReplicaSets, Keys: engine.OwnerOrMatch("Deployment", client.Deployments, func(o client.Object) labels.Selector {
				return engine.SelectorOf(o.(*appsv1.Deployment).Spec.Selector)
			})},
			{Resource: client.Pods, Keys: podGone},
		},
		Writes: []engine.Write{
			{Resource: client.ReplicaSets, Verbs: []string{"create", "update", "patch", "delete"}},
			{Resource: client.Deployments, Verbs: []string{"update"}},
			{Resource: client.Deployments, Subresource: "status", Verbs: []string{"update"}},
		},
		Workers: 5,
		New: func(env *engine.Env) engine.Reconcile {
			return (&controller{env}).reconcile
		},
	}
}

// podGone wakes a Recreate deployment that waits for the last old pod to vanish.
func podGone(env *engine.Env, ev client.Event) []engine.Key {
	pod := ev.Object.(*corev1.Pod)
	if ev.Type != client.Deleted && !engine.Finished(pod) {
		return nil
	}
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	rs, ok := env.Cache(client.ReplicaSets).Get(pod.Namespace, ref.Name)
	if !ok || rs.GetUID() != ref.UID {
		return nil
	}
	owner := metav1.GetControllerOfNoCopy(rs)
	if owner == nil || owner.Kind != "Deployment" {
		return nil
	}
	d, ok := client.Cached[*appsv1.Deployment](env.Cache(client.Deployments), pod.Namespace, owner.Name)
	if !ok || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []engine.Key{engine.KeyOf(d)}
}

type controller struct{ env *engine.Env }

// rollout is one reconcile of one deployment. Its objects are private copies.
type rollout struct {
	env *engine.Env
	d   *appsv1.Deployment
	// old are the other replica sets, oldest first; fresh has the present
	// template and is nil until it exists.
	old   []*appsv1.ReplicaSet
	fresh *appsv1.ReplicaSet
	now   time.Time
	// was is the status as it was read; d.Status is changed on the way.
	was      appsv1.DeploymentStatus
	deadline time.Duration // until the progress deadline is to be checked; 0: never
}

func (c *controller) reconcile(ctx context.Context, key engine.Key) (time.Duration, error) {
	shared, ok := client.Cached[*appsv1.Deployment](c.env.Cache(client.Deployments), key.Namespace, key.Name)
	if !ok {
		return 0, nil
	}
	d := shared.DeepCopy()
	if d.Spec.Selector != nil && reflect.DeepEqual(d.Spec.Selector, &metav1.LabelSelector{}) {
		c.env.Recorder.Event(shared, corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		return 0, nil
	}
	pending, _ := c.env.Ledger.Pending(key)
	sets := client.ListCached[*appsv1.ReplicaSet](c.env.Cache(client.ReplicaSets), d.Namespace, nil)
	mine, err := engine.Claim(ctx, c.env.Client, engine.Owning{
		Owner: d, Kind: kind, Key: client.Key{Resource: client.Deployments, Namespace: d.Namespace, Name: d.Name},
		Selector: engine.SelectorOf(d.Spec.Selector), Of: client.ReplicaSets,
	}, sets)
	if err != nil {
		return 0, err
	}
	r := &rollout{env: c.env, d: d, now: c.env.Clock.Now(), was: *d.Status.DeepCopy()}
	r.sort(append(mine, engine.Unseen(pending, sets)...))
	if err := r.run(ctx); err != nil {
		return 0, fmt.Errorf("rolling out deployment %s/%s: %w", d.Namespace, d.Name, err)
	}
	return r.deadline, nil
}

// sort splits the replica sets into the one with the present template and the
// others. Of several with that template the oldest is taken.
func (r *rollout) sort(mine []*appsv1.ReplicaSet) {
	slices.SortFunc(mine, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for _, rs := range mine {
		rs = rs.DeepCopy()
		if r.fresh == nil && sameTemplate(&rs.Spec.Template, &r.d.Spec.Template) {
			r.fresh = rs
		} else {
			r.old = append(r.old, rs)
		}
	}
}

func (r *rollout) run(ctx context.Context) error {
	if r.d.DeletionTimestamp != nil {
		return r.writeStatus(ctx)
	}
	if err := r.checkPaused(ctx); err != nil {
		return err
	}
	if r.d.Spec.Paused {
		return r.syncPaused(ctx)
	}
	if asked, err := r.rollback(ctx); asked || err != nil {
		return err
	}
	if r.isScaling() {
		if err := r.findFresh(ctx, false); err != nil {
			return err
		}
		if err := r.scale(ctx); err != nil {
			return err
		}
		return r.writeStatus(ctx)
	}
	step := r.rolling
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		step = r.recreate
	}
	if err := step(ctx); err != nil {
		return err
	}
	if complete(r.d, r.d.Status) {
		if err := r.cleanUp(ctx); err != nil {
			return err
		}
	}
	return r.progress(ctx)
}

func (r *rollout) syncPaused(ctx context.Context) error {
	if err := r.findFresh(ctx, false); err != nil {
		return err
	}
	if err := r.scale(ctx); err != nil {
		return err
	}
	if err := r.cleanUp(ctx); err != nil {
		return err
	}
	return r.writeStatus(ctx)
}

// all returns every replica set, the new one last.
func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.fresh == nil {
		return r.old
	}
	return append(slices.Clone(r.old), r.fresh)
}
