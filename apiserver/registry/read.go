package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/watchcache"
	"knarr.dev/knarr/store"
)

// Get returns an object. resourceVersion "" asks for a consistent read, "0" for
// any, N for one not older than N.
func (r *Registry) Get(ctx context.Context, q Request, resourceVersion string) (*watchcache.Item, error) {
	if err := r.fresh(ctx, resourceVersion); err != nil {
		return nil, err
	}
	it := q.Resource.Cache.Get(q.key())
	if it == nil {
		return nil, q.notFound()
	}
	return q.Resource.item(ctx, it)
}

// fresh waits until the cache is as new as a resourceVersion demands.
func (r *Registry) fresh(ctx context.Context, resourceVersion string) error {
	switch resourceVersion {
	case "0":
		return nil
	case "":
		if r.cfg.SingleServer {
			return nil
		}
		rev, err := r.cfg.Store.Revision(ctx)
		if err != nil {
			return storeError(err)
		}
		return r.hub.Wait(ctx, rev)
	}
	rev, err := parseRevision(resourceVersion)
	if err != nil {
		return err
	}
	return r.waitFor(ctx, rev)
}

// How long a read waits for a revision that the server has not seen.
const futureRevisionWait = 3 * time.Second

func (r *Registry) waitFor(ctx context.Context, rev int64) error {
	if r.hub.Revision() >= rev {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, futureRevisionWait)
	defer cancel()
	if err := r.hub.Wait(ctx, rev); err != nil {
		e := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", rev, r.hub.Revision()), 1)
		e.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
		return e
	}
	return nil
}

func parseRevision(s string) (int64, error) {
	rev, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version %q: %v", s, errors.Unwrap(err)))
	}
	return int64(rev), nil
}

// ListOptions selects what List returns.
type ListOptions struct {
	Labels               labels.Selector // nil: all
	Fields               fields.Selector // nil: all
	ResourceVersion      string
	ResourceVersionMatch metav1.ResourceVersionMatch
	Limit                int64
	Continue             string
	// NoInitial: a watch without resourceVersion does not show the present state.
	NoInitial bool
}

// List is a page of objects, all of one revision.
type List struct {
	Items     []*watchcache.Item
	Revision  int64
	Continue  string
	Remaining *int64
}

// List returns the objects of q's namespace ("" for all), or with q.Name that
// object only.
func (r *Registry) List(ctx context.Context, q Request, o ListOptions) (*List, error) {
	l, err := r.list(ctx, q, o)
	if err != nil {
		return nil, err
	}
	l.Items, err = q.Resource.Items(ctx, l.Items)
	return l, err
}

func (r *Registry) list(ctx context.Context, q Request, o ListOptions) (*List, error) {
	match, err := matcher(ctx, &q, o)
	if err != nil {
		return nil, err
	}
	prefix := ""
	if q.Namespace != "" {
		prefix = q.Namespace + "/"
	}
	if o.Continue != "" {
		return r.listContinue(ctx, &q, o, prefix, match)
	}
	// A limit makes a revision exact, from before resourceVersionMatch existed.
	legacyExact := o.ResourceVersionMatch == "" && o.Limit > 0 && o.ResourceVersion != "" && o.ResourceVersion != "0"
	if legacyExact || o.ResourceVersionMatch == metav1.ResourceVersionMatchExact {
		rev, err := parseRevision(o.ResourceVersion)
		if err != nil {
			return nil, err
		}
		if err := r.waitFor(ctx, rev); err != nil {
			return nil, err
		}
		return r.listStore(ctx, &q, o, prefix, "", rev, match)
	}
	if err := r.fresh(ctx, o.ResourceVersion); err != nil {
		return nil, err
	}
	return page(q.Resource.Cache.Snapshot(), prefix, "", o, match), nil
}

func page(s *watchcache.Snapshot, prefix, from string, o ListOptions, match func(kind.Object) bool) *List {
	out := &List{Revision: s.Revision}
	if prefix == "" && match == nil && from == "" {
		n := int64(s.Len())
		if o.Limit > 0 {
			n = min(n, o.Limit)
		}
		out.Items = make([]*watchcache.Item, 0, n)
	}
	var more int64
	s.Ascend(prefix, from, func(i *watchcache.Item) bool {
		if match != nil && !match(i.Object) {
			return true
		}
		if o.Limit > 0 && int64(len(out.Items)) == o.Limit {
			more++
			return match == nil
		}
		out.Items = append(out.Items, i)
		return true
	})
	out.end(more, match == nil)
	return out
}

// end sets the continue token of a page after which more objects follow.
func (l *List) end(more int64, exact bool) {
	if more == 0 {
		return
	}
	l.Continue = encodeContinue(l.Revision, l.Items[len(l.Items)-1].Key+"\x00")
	if exact {
		l.Remaining = &more
	}
}

// continueToken has the layout of Kubernetes' own tokens.
type continueToken struct {
	APIVersion      string `json:"v"`
	ResourceVersion int64  `json:"rv"`
	Start           string `json:"start"`
}

func encodeContinue(revision int64, start string) string {
	b, err := json.Marshal(continueToken{APIVersion: "meta.k8s.io/v1", ResourceVersion: revision, Start: start})
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func (r *Registry) listContinue(ctx context.Context, q *Request, o ListOptions, prefix string, match func(kind.Object) bool) (*List, error) {
	if o.ResourceVersion != "" && o.ResourceVersion != "0" {
		return nil, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	raw, err := base64.RawURLEncoding.DecodeString(o.Continue)
	var t continueToken
	if err != nil || json.Unmarshal(raw, &t) != nil || t.APIVersion != "meta.k8s.io/v1" || t.Start == "" {
		return nil, apierrors.NewBadRequest("continue key is not valid: start a new list without it")
	}
	if t.ResourceVersion < 0 { // an inconsistent continuation: from here on, as it is now
		return page(q.Resource.Cache.Snapshot(), prefix, t.Start, o, match), nil
	}
	if t.ResourceVersion == 0 || t.ResourceVersion > r.hub.Revision() {
		return nil, apierrors.NewBadRequest("continue key is not valid: its resourceVersion is not of this server: start a new list without it")
	}
	list, err := r.listStore(ctx, q, o, prefix, t.Start, t.ResourceVersion, match)
	if apierrors.IsResourceExpired(err) {
		e := apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.")
		e.ErrStatus.ListMeta.Continue = encodeContinue(-1, t.Start)
		return nil, e
	}
	return list, err
}

// listStore reads a past revision.
func (r *Registry) listStore(ctx context.Context, q *Request, o ListOptions, prefix, start string, revision int64, match func(kind.Object) bool) (*List, error) {
	res := q.Resource.hub
	base := watchcache.Key(res.Kind, "")
	out := &List{Revision: revision}
	opts := store.RangeOptions{Revision: revision, Limit: 500}
	if start != "" {
		opts.From = base + max(start, prefix)
	}
	var more int64
	for {
		page, err := r.cfg.Store.Range(ctx, base+prefix, opts)
		if errors.Is(err, store.ErrCompacted) {
			return nil, apierrors.NewResourceExpired(fmt.Sprintf("The resourceVersion for the provided list is too old: %d", revision))
		}
		if err != nil {
			return nil, storeError(err)
		}
		for i, kv := range page.KVs {
			if o.Limit > 0 && int64(len(out.Items)) == o.Limit {
				out.end(int64(len(page.KVs)-i)+page.Remaining, match == nil)
				return out, nil
			}
			obj, err := r.decodeStored(res.Kind, kv.Key, kv.Value)
			if err != nil {
				return nil, apierrors.NewInternalError(err)
			}
			if match == nil || match(obj) {
				out.Items = append(out.Items, watchcache.NewItem(strings.TrimPrefix(kv.Key, base), obj, kv.Revision))
			}
		}
		if !page.More {
			out.end(more, match == nil)
			return out, nil
		}
		opts.From = page.KVs[len(page.KVs)-1].Key + "\x00"
	}
}

// matcher compiles selectors; nil matches everything.
func matcher(ctx context.Context, q *Request, o ListOptions) (func(kind.Object) bool, error) {
	sel, flds, name := o.Labels, o.Fields, q.Name
	if sel != nil && sel.Empty() {
		sel = nil
	}
	if flds != nil && flds.Empty() {
		flds = nil
	}
	if flds != nil {
		if err := checkFields(q, o); err != nil {
			return nil, err
		}
	}
	if sel == nil && flds == nil && name == "" {
		return nil, nil
	}
	res := q.Resource
	return func(obj kind.Object) bool {
		if name != "" && obj.GetName() != name {
			return false
		}
		if sel != nil && !sel.Matches(labels.Set(obj.GetLabels())) {
			return false
		}
		if flds == nil {
			return true
		}
		if res.stored != nil && res.stored != res {
			shown, err := res.Custom.Convert(ctx, []kind.Object{obj})
			if err != nil {
				return false
			}
			obj = shown[0]
		}
		return flds.Matches(fieldsOf(res.selects(), obj))
	}, nil
}

// selects is the kind whose fields a request may select by: a view has its own
// names for them, or its hub's.
func (r *Resource) selects() *Resource {
	if r.Fields != nil {
		return r
	}
	return r.hub
}

// fieldsOf lists an object's selectable fields.
func fieldsOf(res *Resource, obj kind.Object) fields.Set {
	set := fields.Set{"metadata.name": obj.GetName()}
	if res.Namespaced {
		set["metadata.namespace"] = obj.GetNamespace()
	}
	if res.Fields != nil {
		for k, v := range res.Fields(obj) {
			set[k] = v
		}
	}
	return set
}

func checkFields(q *Request, o ListOptions) error {
	known := fieldsOf(q.Resource.selects(), q.Resource.hub.New())
	if q.Resource.Custom == nil {
		known["metadata.namespace"] = ""
	}
	for _, req := range o.Fields.Requirements() {
		if _, ok := known[req.Field]; !ok {
			gvr := q.Resource.GVR()
			sel := ""
			if o.Labels != nil {
				sel = o.Labels.String()
			}
			return apierrors.NewBadRequest(fmt.Sprintf("Unable to find %q that match label selector %q, field selector %q: field label not supported: %s",
				gvr.String(), sel, o.Fields.String(), req.Field))
		}
	}
	return nil
}

// Watch is a stream of the changes that match a selection.
type Watch struct {
	*watchcache.Watcher
	match func(kind.Object) bool
	// Initial are the objects to show as ADDED before the changes.
	Initial []*watchcache.Item
	// InitialRevision is the revision of Initial.
	InitialRevision int64

	after int64 // changes up to this revision are not shown
}

// Watch starts a watch: after ResourceVersion; or with "" or "0", from the
// present state, shown as Initial; initial asks for that in any case.
func (r *Registry) Watch(ctx context.Context, q Request, o ListOptions, initial bool) (*Watch, error) {
	match, err := matcher(ctx, &q, o)
	if err != nil {
		return nil, err
	}
	prefix := ""
	if q.Namespace != "" {
		prefix = q.Namespace + "/"
	}
	w := &Watch{match: func(obj kind.Object) bool {
		return (q.Namespace == "" || obj.GetNamespace() == q.Namespace) && (match == nil || match(obj))
	}}
	if present := o.ResourceVersion == "" || o.ResourceVersion == "0"; present || initial {
		if err := r.fresh(ctx, o.ResourceVersion); err != nil {
			return nil, err
		}
		var s *watchcache.Snapshot
		s, w.Watcher = q.Resource.Cache.SnapshotAndWatch()
		w.InitialRevision = s.Revision
		if !o.NoInitial {
			w.Initial, err = q.Resource.Items(ctx, page(s, prefix, "", ListOptions{}, match).Items)
		}
		if err != nil {
			w.Stop()
			return nil, err
		}
		r.endIfChanged(q.Resource, w)
		return w, nil
	}
	rev, err := parseRevision(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w.after = rev
	if w.Watcher, err = q.Resource.Cache.Watch(rev); err != nil {
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", rev, r.hub.Revision()))
	}
	r.endIfChanged(q.Resource, w)
	return w, nil
}

// endIfChanged ends a watch whose request found its kind before the kind was
// changed or withdrawn, and which began after that: nothing else would end it.
func (r *Registry) endIfChanged(res *Resource, w *Watch) {
	if res.Custom != nil && r.Resource(res.GVR()) != res {
		w.End()
	}
}

// Select tells how a change looks to this watch: an object that comes to match
// is added, one that ceases to match is deleted. ok is false if the watch does
// not see the change.
func (w *Watch) Select(e *watchcache.Event) (t watchcache.EventType, ok bool) {
	if e.Revision <= w.after {
		return "", false
	}
	now := e.Type != watchcache.Deleted && w.match(e.Item.Object)
	before := e.Prev != nil && w.match(e.Prev.Object)
	switch {
	case now && before:
		return watchcache.Modified, true
	case now:
		return watchcache.Added, true
	case before:
		return watchcache.Deleted, true
	}
	return "", false
}
