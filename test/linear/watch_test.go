package linear

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// event is one change as a watcher saw it.
type event struct {
	kind     watch.EventType
	key      string
	value    string
	revision int64
}

// gap is a time of which a watcher saw only the end, by a list: the server no longer
// knew the revision from which it wanted to go on.
type gap struct {
	after, upTo int64
	there       map[string]bool // what the list had
}

// sight is what one watcher saw.
type sight struct {
	events  []event
	gaps    []gap
	resumed int
	err     error
}

// follow watches from a revision until it has seen the object called end. It goes on
// from its last revision whenever the watch breaks off and, as informers do, from a
// list where that revision is forgotten.
func follow(ctx context.Context, maps typedcorev1.ConfigMapInterface, from int64, end string) (s sight) {
	for ctx.Err() == nil {
		w, err := maps.Watch(ctx, metav1.ListOptions{ResourceVersion: strconv.FormatInt(from, 10), AllowWatchBookmarks: true})
		if err != nil {
			pause(10 * time.Millisecond) // nobody listens
			continue
		}
		s.resumed++
		for e := range w.ResultChan() {
			m, ok := e.Object.(*corev1.ConfigMap)
			if !ok {
				if err := apierrors.FromObject(e.Object); apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
					from = s.relist(ctx, maps, from)
				}
				break
			}
			from = revision(m.ResourceVersion)
			if e.Type == watch.Bookmark {
				continue
			}
			s.events = append(s.events, event{e.Type, m.Name, m.Data["v"], from})
			if m.Name == end {
				w.Stop()
				return s
			}
		}
		w.Stop()
		if len(s.gaps) > 0 && s.gaps[len(s.gaps)-1].there[end] {
			return s
		}
	}
	s.err = ctx.Err()
	return s
}

// relist passes over what the server has forgotten; it returns the list's revision,
// or the one it was given if there is no list.
func (s *sight) relist(ctx context.Context, maps typedcorev1.ConfigMapInterface, from int64) int64 {
	l, err := maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		return from
	}
	g := gap{from, revision(l.ResourceVersion), map[string]bool{}}
	for i := range l.Items {
		g.there[l.Items[i].Name] = true
	}
	s.gaps = append(s.gaps, g)
	return g.upTo
}

// inGap tells whether a revision is one that the watcher cannot have seen.
func (s *sight) inGap(revision int64) bool {
	return slices.ContainsFunc(s.gaps, func(g gap) bool { return revision > g.after && revision <= g.upTo })
}

// orderly tells what is wrong with the events of one watcher.
func (s *sight) orderly() error {
	last, gaps := int64(0), s.gaps
	there := map[string]bool{}
	for i, e := range s.events {
		for len(gaps) > 0 && gaps[0].upTo < e.revision {
			last, there, gaps = gaps[0].upTo, maps.Clone(gaps[0].there), gaps[1:]
		}
		if e.revision <= last {
			return fmt.Errorf("event %d, %+v, does not come after revision %d", i, e, last)
		}
		last = e.revision
		if (e.kind == watch.Added) == there[e.key] {
			return fmt.Errorf("event %d, %+v: the object was there before: %v", i, e, there[e.key])
		}
		there[e.key] = e.kind != watch.Deleted
	}
	return nil
}

// complete tells which acknowledged writes have no event.
func (s *sight) complete(h *history) error {
	type write struct {
		key, value string
		revision   int64
	}
	seen := map[write]bool{}
	for _, e := range s.events {
		if e.kind != watch.Deleted {
			seen[write{e.key, e.value, e.revision}] = true
		}
	}
	var errs []error
	for _, op := range h.ops {
		r, a := op.Input.(request), op.Output.(answer)
		if (r.verb == create || r.verb == update) && a.outcome == done && !seen[write{r.key, r.value, a.revision}] && !s.inGap(a.revision) {
			errs = append(errs, fmt.Errorf("%v of %s as %s in revision %d has no event", r.verb, r.key, r.value, a.revision))
		}
	}
	return errors.Join(errs[:min(len(errs), 10)]...)
}

// equal tells where two watchers differ in what both can have seen.
func (s *sight) equal(o *sight) error {
	both := func(e event) bool { return s.inGap(e.revision) || o.inGap(e.revision) }
	a, b := slices.DeleteFunc(slices.Clone(s.events), both), slices.DeleteFunc(slices.Clone(o.events), both)
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Errorf("event %d: %+v and %+v", i, a[i], b[i])
		}
	}
	if len(a) != len(b) {
		return fmt.Errorf("%d and %d events", len(a), len(b))
	}
	return nil
}
