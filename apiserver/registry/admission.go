package registry

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/watchcache"
)

// Operation is what a write does.
type Operation string

// The operations that admission sees.
const (
	Create  Operation = "CREATE"
	Update  Operation = "UPDATE"
	Delete  Operation = "DELETE"
	Connect Operation = "CONNECT"
)

// Attributes describe a write to admission.
type Attributes struct {
	Operation Operation
	// Resource is the one in whose version Object and Old are; Requested is the
	// one that the request named, another version of the same.
	Resource    *Resource
	Requested   *Resource
	Subresource string
	Namespace   string
	Name        string
	Object      kind.Object // nil for Delete and Connect
	Old         kind.Object // nil for Create and Connect
	// Body is the object of a subresource that has its own kind, such as Scale or
	// PodExecOptions, and OldBody what it was; nil for others, which have Object.
	Body, OldBody runtime.Object
	BodyKind      schema.GroupVersionKind
	// Options are the request's CreateOptions, UpdateOptions or DeleteOptions.
	Options runtime.Object
	User    *authenticationv1.UserInfo
	DryRun  bool
	Warn    func(string)
	// Annotate writes an annotation to the audit log; nil: there is none.
	Annotate func(key, value string)

	// Again tells the second round of the mutating steps; what a step noted in the
	// first is in Notes, by its name.
	Again bool
	Notes map[string]any

	replaced, again, admitted bool
}

// Replace changes the object for another one, of Resource's kind. All mutating
// steps are asked once more afterwards.
func (a *Attributes) Replace(obj kind.Object) {
	a.Object, a.replaced, a.again = obj, true, true
}

// ReplaceBody is Replace for an object that a subresource has for itself.
func (a *Attributes) ReplaceBody(obj runtime.Object) { a.Body, a.again = obj, true }

// Note keeps what a step wants to know in the second round.
func (a *Attributes) Note(step string, v any) {
	if a.Notes == nil {
		a.Notes = map[string]any{}
	}
	a.Notes[step] = v
}

// Audit writes an annotation to the audit log, if there is one.
func (a *Attributes) Audit(key, value string) {
	if a.Annotate != nil {
		a.Annotate(key, value)
	}
}

// Kind is the kind of what the request is about.
func (a *Attributes) Kind() schema.GroupVersionKind {
	if !a.BodyKind.Empty() {
		return a.BodyKind
	}
	return a.Requested.GVK()
}

// Admission is one step of the ordered list that each write passes. Mutate may
// change Object or replace it; Validate may only refuse. Either may be nil.
// Errors are API errors (Forbidden, Invalid).
type Admission struct {
	Name     string
	Mutate   func(context.Context, *Attributes) error
	Validate func(context.Context, *Attributes) error
}

func (r *Registry) attributes(q *Request, op Operation, obj, old kind.Object) *Attributes {
	return &Attributes{
		Operation: op, Resource: q.Resource.hub, Requested: q.Resource, Subresource: q.Subresource,
		Namespace: q.Namespace, Name: q.Name, Object: obj, Old: old, Options: optionsOf(q, op), User: q.User, DryRun: q.DryRun, Warn: q.warn, Annotate: q.Annotate,
		admitted: q.admitted,
	}
}

var optionsVersion = metav1.SchemeGroupVersion.String()

func optionsOf(q *Request, op Operation) runtime.Object {
	var dryRun []string
	if q.DryRun {
		dryRun = []string{metav1.DryRunAll}
	}
	switch op {
	case Create:
		return &metav1.CreateOptions{TypeMeta: metav1.TypeMeta{APIVersion: optionsVersion, Kind: "CreateOptions"}, DryRun: dryRun, FieldManager: q.FieldManager}
	case Update:
		return &metav1.UpdateOptions{TypeMeta: metav1.TypeMeta{APIVersion: optionsVersion, Kind: "UpdateOptions"}, DryRun: dryRun, FieldManager: q.FieldManager}
	}
	return nil
}

// mutate asks the mutating steps; if one replaced the object, all once more, so
// that each sees what those after it made.
func (r *Registry) mutate(ctx context.Context, a *Attributes) error {
	if a.admitted {
		return nil
	}
	var before []metav1.ManagedFieldsEntry
	if a.Object != nil {
		before = owned(a.Object)
	}
	for {
		for _, step := range r.cfg.Admit {
			if step.Mutate != nil {
				if err := step.Mutate(ctx, a); err != nil {
					return err
				}
			}
		}
		if a.Again || !a.again {
			break
		}
		a.Again = true
	}
	// What steps change is not the client's: fields owned stay as they were, unless
	// a step has written records that can be read.
	if a.replaced && managedfields.ValidateManagedFields(owned(a.Object)) != nil {
		a.Object.SetManagedFields(before)
	}
	return nil
}

func (r *Registry) validate(ctx context.Context, a *Attributes) error {
	if a.admitted {
		return nil
	}
	for _, step := range r.cfg.Admit {
		if step.Validate != nil {
			if err := step.Validate(ctx, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// Admit asks all steps about a request for a subresource that has a body of its
// own: op is Create, Update or Connect, body's kind is gvk. It returns the body
// as the mutating steps left it; what q does next to the object itself is admitted
// by that.
func (r *Registry) Admit(ctx context.Context, q *Request, op Operation, gvk schema.GroupVersionKind, body, old runtime.Object) (runtime.Object, error) {
	a := r.attributes(q, op, nil, nil)
	a.admitted = false
	a.Body, a.OldBody, a.BodyKind = body, old, gvk
	codec.SetType(body, gvk)
	if err := r.mutate(ctx, a); err != nil {
		return nil, err
	}
	if err := r.validate(ctx, a); err != nil {
		return nil, err
	}
	q.admitted = true
	return a.Body, nil
}

// Versions lists the resources that show the same objects as res: itself first,
// then its other versions.
func (r *Registry) Versions(res *Resource) []*Resource {
	out := []*Resource{res}
	for _, other := range r.Resources() {
		if other != res && other.Cache == res.Cache {
			out = append(out, other)
		}
	}
	return out
}

// Show converts an object of the resource from's version into r's; obj is not
// changed.
func (r *Resource) Show(ctx context.Context, from *Resource, obj kind.Object) (kind.Object, error) {
	switch {
	case r == from || obj == nil:
		return obj, nil
	case r.Custom != nil:
		out, err := r.Custom.Convert(ctx, []kind.Object{obj})
		if err != nil {
			return nil, err
		}
		return out[0], nil
	}
	hub, err := from.toHub(obj)
	if err != nil {
		return nil, err
	}
	return r.View(hub)
}

// Read decodes the JSON of an object of this resource, as of a request: what the
// kind does not know is dropped, and defaults are filled.
func (r *Resource) Read(data []byte) (kind.Object, error) {
	if r.Custom != nil {
		obj, _, err := r.Custom.Decode(data, false)
		return obj, err
	}
	obj := r.New()
	if _, _, err := codec.Decode(data, codec.JSON, r.GVK(), obj, false); err != nil {
		return nil, err
	}
	if r.Default != nil {
		r.Default(obj)
	}
	return obj, nil
}

// Objects returns the object with a name in a namespace, or all of the namespace
// ("" for all) if name is empty, in this resource's version.
func (r *Resource) Objects(ctx context.Context, namespace, name string) ([]kind.Object, error) {
	var items []*watchcache.Item
	if name != "" {
		if it := r.Cache.Get(objectKey(namespace, name)); it != nil {
			items = append(items, it)
		}
	} else {
		prefix := ""
		if namespace != "" {
			prefix = namespace + "/"
		}
		r.Cache.Snapshot().Ascend(prefix, "", func(it *watchcache.Item) bool {
			items = append(items, it)
			return true
		})
	}
	items, err := r.Items(ctx, items)
	if err != nil {
		return nil, err
	}
	out := make([]kind.Object, len(items))
	for i, it := range items {
		if out[i], err = r.View(it.Object); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Types is how objects of a resource are merged.
func (r *Registry) Types(res *Resource) (managedfields.TypeConverter, error) {
	m, err := r.managed(res)
	return m.Types, err
}
