package admission

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/api/quota"
	"knarr.dev/knarr/apiserver/registry"
)

var resourceQuotas = schema.GroupVersionResource{Version: "v1", Resource: "resourcequotas"}

// ChangeStatus changes the status of an object that the caches have: change is
// given a copy and called again when another writer was faster.
type ChangeStatus func(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, change func(kind.Object) error) error

// resourceQuota refuses what would exceed a quota and takes what is granted from
// it, before the object is stored. The quota controller gives back what deletions
// free. It is the last step, so that nothing is taken for an object that another
// step refuses.
//
// Writers in one namespace take turns: two must not be granted the last unit.
func resourceQuota(d Deps) registry.Admission {
	turns := newTurns()
	return registry.Admission{Name: "ResourceQuota", Validate: func(ctx context.Context, a *registry.Attributes) error {
		if !counted(a) {
			return nil
		}
		if !limited(d, a.Namespace) {
			return nil
		}
		defer turns.take(a.Namespace)()
		return charge(ctx, d, a)
	}}
}

// counted: the writes that can take more of a quota.
func counted(a *registry.Attributes) bool {
	switch {
	case a.Namespace == "" || !a.Resource.Namespaced:
		return false
	case a.Operation == registry.Create:
		return a.Subresource == ""
	case a.Operation == registry.Update && a.Subresource == "":
		switch a.Resource.GVR() {
		case pods, services, claims:
			return true
		}
	}
	return a.Operation == registry.Update && a.Resource.GVR() == pods && a.Subresource == "resize"
}

var (
	services = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	claims   = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
)

func limited(d Deps, namespace string) (found bool) {
	d.Each(resourceQuotas, namespace, func(kind.Object) bool { found = true; return false })
	return found
}

// charge checks all quotas before it takes from any.
func charge(ctx context.Context, d Deps, a *registry.Attributes) error {
	gr := a.Resource.GroupResource()
	need := quota.Usage(gr, a.Object)
	if a.Old != nil {
		need = quota.Minus(need, quota.Usage(gr, a.Old))
	}
	var take []*corev1.ResourceQuota
	var refused error
	d.Each(resourceQuotas, a.Namespace, func(o kind.Object) bool {
		q := o.(*corev1.ResourceQuota)
		if !quota.Falls(q, a.Object) {
			return true
		}
		var wants bool
		if wants, refused = allows(q, a, need); wants {
			take = append(take, q)
		}
		return refused == nil
	})
	if refused != nil || a.DryRun {
		return refused
	}
	for i, q := range take {
		if err := change(ctx, d, q, need); err != nil {
			for _, taken := range take[:i] {
				_ = change(ctx, d, taken, quota.Minus(nil, need)) // the controller counts again in any case
			}
			return err
		}
	}
	return nil
}

// allows tells whether the object takes anything from the quota, or why it must not.
func allows(q *corev1.ResourceQuota, a *registry.Attributes, need corev1.ResourceList) (bool, error) {
	if p, ok := a.Object.(*corev1.Pod); ok && a.Operation == registry.Create {
		if missing := quota.Missing(p, q.Spec.Hard); len(missing) > 0 {
			return false, forbidden(a, "failed quota: %s: must specify %s", q.Name, unstated(missing))
		}
	}
	delta := quota.Only(need, q.Spec.Hard)
	for n, v := range delta {
		if v.IsZero() {
			delete(delta, n)
		}
	}
	if len(delta) == 0 {
		return false, nil
	}
	if !equality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard) {
		// The controller has not counted for these limits yet.
		for _, n := range quota.Names(delta) {
			if _, ok := q.Status.Used[n]; !ok {
				return false, forbidden(a, "status unknown for quota: %s, resources: %s", q.Name, n)
			}
		}
	}
	if over := quota.Exceeded(q.Spec.Hard, q.Status.Used, delta); len(over) > 0 {
		return false, forbidden(a, "exceeded quota: %s, requested: %s, used: %s, limited: %s",
			q.Name, quota.Print(delta, over), quota.Print(q.Status.Used, over), quota.Print(q.Spec.Hard, over))
	}
	return true, nil
}

// unstated writes "cpu for: a,b; memory for: a".
func unstated(missing map[corev1.ResourceName][]string) string {
	var words []string
	for n, containers := range missing {
		words = append(words, fmt.Sprintf("%s for: %s", n, strings.Join(containers, ",")))
	}
	slices.Sort(words)
	return strings.Join(words, "; ")
}

func forbidden(a *registry.Attributes, format string, args ...any) error {
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, fmt.Errorf(format, args...))
}

func change(ctx context.Context, d Deps, q *corev1.ResourceQuota, by corev1.ResourceList) error {
	return d.ChangeStatus(ctx, resourceQuotas, q.Namespace, q.Name, func(o kind.Object) error {
		now := o.(*corev1.ResourceQuota)
		by := quota.Only(by, now.Spec.Hard)
		if over := quota.Exceeded(now.Spec.Hard, now.Status.Used, by); len(over) > 0 {
			return apierrors.NewConflict(resourceQuotas.GroupResource(), q.Name, fmt.Errorf("the quota changed while the request was checked; please try again"))
		}
		if now.Status.Used == nil {
			now.Status.Used = corev1.ResourceList{}
		}
		quota.Add(now.Status.Used, by)
		return nil
	})
}

// turns lets one writer of a namespace in at a time. Namespaces share a fixed
// number of locks, so that none must be kept track of.
type turns struct {
	seed  maphash.Seed
	locks [64]sync.Mutex
}

func newTurns() *turns { return &turns{seed: maphash.MakeSeed()} }

// take waits for a namespace's turn and returns what ends it.
func (t *turns) take(namespace string) (end func()) {
	l := &t.locks[maphash.String(t.seed, namespace)%uint64(len(t.locks))]
	l.Lock()
	return l.Unlock
}
