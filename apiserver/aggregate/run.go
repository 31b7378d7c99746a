package aggregate

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

// The label of APIServices that the server keeps itself: once at the start for
// built-in ones, always for those of custom resources.
const (
	automanaged = "kube-aggregator.kubernetes.io/automanaged"
	onStart     = "onstart"
	always      = "true"
)

// Run follows APIServices, Services and their endpoints until ctx ends.
func (a *Aggregator) Run(ctx context.Context) error {
	defer a.checks.Wait()
	for ctx.Err() == nil {
		a.follow(ctx)
	}
	return nil
}

// follow looks at everything after each change; it returns when a watch has ended.
func (a *Aggregator) follow(ctx context.Context) {
	var watches []*watchcache.Watcher
	for _, res := range []*registry.Resource{a.services, a.core, a.slices, a.crds} {
		if res == nil {
			continue
		}
		_, w := res.Cache.SnapshotAndWatch()
		defer w.Stop()
		watches = append(watches, w)
	}
	ready := func(i int) <-chan struct{} {
		if i < len(watches) {
			return watches[i].Ready()
		}
		return nil
	}
	for {
		next := a.sync(ctx)
		timer := time.NewTimer(next)
		if next == 0 {
			timer.Stop() // nothing to wait for
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-a.wake:
		case <-ready(0):
		case <-ready(1):
		case <-ready(2):
		case <-ready(3):
		}
		timer.Stop()
		for _, w := range watches {
			if _, err := w.Poll(); err != nil {
				return
			}
		}
	}
}

// sync brings the APIServices' conditions up to date and returns when it must be
// called again although nothing has happened; 0: never.
func (a *Aggregator) sync(ctx context.Context) time.Duration {
	a.ensureLocal(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	present := map[string]bool{}
	var wait time.Duration
	changed := false
	var news []func()
	for _, s := range a.all() {
		if s.Spec.Service == nil {
			a.report(ctx, s, condition{apiregv1.ConditionTrue, "Local", "Local APIServices are always available"})
			continue
		}
		present[s.Name] = true
		r := a.state[s.Name]
		if r == nil || !equality.Semantic.DeepEqual(r.service.Spec, s.Spec) {
			r, changed = newRemote(a, s), true
			a.state[s.Name] = r
		}
		c, again := a.judge(ctx, r)
		if again > 0 && (wait == 0 || again < wait) {
			wait = again
		}
		if c == nil {
			continue // a check is under way: what was said last still counts
		}
		if ok := c.status == apiregv1.ConditionTrue; ok != r.available || r.fresh {
			r.available, r.fresh, changed = ok, false, true
		}
		news = append(news, func() { a.report(ctx, s, *c) })
	}
	for name, r := range a.state {
		if !present[name] {
			r.transport.CloseIdleConnections()
			delete(a.state, name)
			changed = true
		}
	}
	if changed {
		a.publish()
	}
	// What the conditions say holds for requests by the time that they are seen.
	for _, tell := range news {
		tell()
	}
	return wait
}

// condition is what an APIService's condition Available says.
type condition struct {
	status          apiregv1.ConditionStatus
	reason, message string
}

// report writes a condition into the status, if it is news.
func (a *Aggregator) report(ctx context.Context, s *apiregv1.APIService, c condition) {
	for _, old := range s.Status.Conditions {
		if old.Type == apiregv1.Available && old.Status == c.status && old.Reason == c.reason && old.Message == c.message {
			return
		}
	}
	next := apiregv1.APIServiceCondition{Type: apiregv1.Available, Status: c.status, Reason: c.reason, Message: c.message, LastTransitionTime: metav1.NewTime(a.Now()).Rfc3339Copy()}
	out := s.DeepCopy()
	found := false
	for i, old := range out.Status.Conditions {
		if old.Type != apiregv1.Available {
			continue
		}
		if old.Status == next.Status {
			next.LastTransitionTime = old.LastTransitionTime
		}
		out.Status.Conditions[i], found = next, true
	}
	if !found {
		out.Status.Conditions = append(out.Status.Conditions, next)
	}
	// After a conflict, the change brings the APIService again.
	_, _, err := a.Registry.Update(ctx, registry.Request{User: a.self, Resource: a.services, Name: s.Name, Subresource: "status"}, out)
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		a.Log.Warn("write the status of an APIService", "name", s.Name, "error", err)
	}
}

// ensureLocal makes an APIService for each group and version that this server
// serves, and removes those that it made for custom resources that are gone.
func (a *Aggregator) ensureLocal(ctx context.Context) {
	local := map[string]bool{}
	for _, l := range a.Local() {
		name := l.Version + "." + l.Group
		local[name] = true
		if a.services.Cache.Get(name) != nil || ctx.Err() != nil {
			continue
		}
		group, version := priorityOf(l.GroupVersion, l.Custom)
		s := &apiregv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{automanaged: onStart}},
			Spec: apiregv1.APIServiceSpec{Group: l.Group, Version: l.Version, GroupPriorityMinimum: group, VersionPriority: version}}
		if l.Custom {
			s.Labels[automanaged] = always
		}
		_, err := a.Registry.Create(ctx, registry.Request{User: a.self, Resource: a.services, Name: name}, s)
		if err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			a.Log.Warn("make the APIService of a group version of this server", "name", name, "error", err)
		}
	}
	for _, s := range a.all() {
		if !local[s.Name] && s.Spec.Service == nil && (s.Labels[automanaged] == always || s.Labels[automanaged] == onStart) {
			_, _, err := a.Registry.Delete(ctx, registry.Request{User: a.self, Resource: a.services, Name: s.Name}, metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				a.Log.Warn("delete the APIService of a group version that is no longer served", "name", s.Name, "error", err)
			}
		}
	}
}

func groupVersion(s *apiregv1.APIService) schema.GroupVersion {
	return schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
}
