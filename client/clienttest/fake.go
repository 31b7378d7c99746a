// Package clienttest is an in-memory double of client.Interface for tests of
// components: optimistic concurrency, generation, finalizers, graceful pod
// deletion, status and binding subresources and ordered cache events behave as
// the server's; defaults, validation, admission and authorization do not exist.
package clienttest

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/uuid"

	"knarr.dev/knarr/client"
)

// Fake is a client.Interface that keeps objects in memory. The zero value is
// not usable; call New.
type Fake struct {
	// Now is the clock of creation and deletion timestamps.
	Now func() time.Time
	// React, if set, is asked before every write (verb is create, update, patch
	// or delete); a non-nil error is the write's result.
	React func(verb string, k client.Key, obj client.Object) error

	mu      sync.Mutex
	rv      int64
	names   int
	objects map[client.Resource]map[types.NamespacedName]client.Object
	subs    map[client.Resource][]*subscription
}

// New returns an empty Fake that holds the given objects.
func New() *Fake {
	return &Fake{
		Now:     time.Now,
		objects: map[client.Resource]map[types.NamespacedName]client.Object{},
		subs:    map[client.Resource][]*subscription{},
	}
}

var _ client.Interface = (*Fake)(nil)

func name(k client.Key) types.NamespacedName {
	return types.NamespacedName{Namespace: k.Namespace, Name: k.Name}
}

func (f *Fake) find(k client.Key) (client.Object, error) {
	obj, ok := f.objects[k.Resource][name(k)]
	if !ok {
		return nil, apierrors.NewNotFound(k.Resource.GroupResource(), k.Name)
	}
	return obj, nil
}

// Get implements client.Interface.
func (f *Fake) Get(_ context.Context, k client.Key) (client.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(k)
}

// Create implements client.Interface.
func (f *Fake) Create(_ context.Context, k client.Key, obj client.Object) (client.Object, error) {
	if err := f.react("create", k, obj); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if k.Subresource == "binding" {
		return obj, f.bind(k, obj)
	}
	if k.Subresource != "" {
		return nil, apierrors.NewMethodNotSupported(k.Resource.GroupResource(), "create "+k.Subresource)
	}
	obj = obj.DeepCopyObject().(client.Object)
	if obj.GetName() == "" {
		if k.Name != "" {
			obj.SetName(k.Name)
		} else {
			f.names++
			obj.SetName(fmt.Sprintf("%s%05d", obj.GetGenerateName(), f.names))
		}
	}
	k.Name = obj.GetName()
	if k.Namespace == "" {
		k.Namespace = obj.GetNamespace()
	}
	obj.SetNamespace(k.Namespace)
	if _, err := f.find(k); err == nil {
		return nil, apierrors.NewAlreadyExists(k.Resource.GroupResource(), k.Name)
	}
	if obj.GetUID() == "" {
		obj.SetUID(uuid.NewUUID())
	}
	if created := obj.GetCreationTimestamp(); created.IsZero() {
		obj.SetCreationTimestamp(metav1.NewTime(f.Now().Truncate(time.Second)))
	}
	obj.SetGeneration(1)
	f.put(k, obj)
	return obj, nil
}

func (f *Fake) bind(k client.Key, obj client.Object) error {
	old, err := f.find(k)
	if err != nil {
		return err
	}
	pod := old.DeepCopyObject().(*corev1.Pod)
	if pod.Spec.NodeName != "" {
		return apierrors.NewConflict(k.Resource.GroupResource(), k.Name, fmt.Errorf("pod %s is already assigned to node %q", k.Name, pod.Spec.NodeName))
	}
	pod.Spec.NodeName = obj.(*corev1.Binding).Target.Name
	pod.Status.Conditions = append(slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled }),
		corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(f.Now())})
	f.put(k, pod)
	return nil
}

// Update implements client.Interface.
func (f *Fake) Update(_ context.Context, k client.Key, obj client.Object) (client.Object, error) {
	if err := f.react("update", k, obj); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.update(k, obj)
}

func (f *Fake) update(k client.Key, obj client.Object) (client.Object, error) {
	old, err := f.find(k)
	if err != nil {
		return nil, err
	}
	if rv := obj.GetResourceVersion(); rv != "" && rv != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(k.Resource.GroupResource(), k.Name, fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
	}
	var next client.Object
	switch k.Subresource {
	case "status":
		next = old.DeepCopyObject().(client.Object)
		setField(next, obj.DeepCopyObject().(client.Object), "Status")
	default:
		next = obj.DeepCopyObject().(client.Object)
		setField(next, old.DeepCopyObject().(client.Object), "Status")
		next.SetUID(old.GetUID())
		next.SetCreationTimestamp(old.GetCreationTimestamp())
		next.SetDeletionTimestamp(old.GetDeletionTimestamp())
		next.SetGeneration(old.GetGeneration())
		if !reflect.DeepEqual(field(old, "Spec"), field(next, "Spec")) {
			next.SetGeneration(old.GetGeneration() + 1)
		}
	}
	next.SetResourceVersion(old.GetResourceVersion())
	if reflect.DeepEqual(old, next) {
		return old, nil
	}
	if next.GetDeletionTimestamp() != nil && len(next.GetFinalizers()) == 0 && len(old.GetFinalizers()) > 0 {
		f.remove(k)
		return next, nil
	}
	f.put(k, next)
	return next, nil
}

func field(o client.Object, n string) any {
	if v := reflect.ValueOf(o).Elem().FieldByName(n); v.IsValid() {
		return v.Interface()
	}
	return nil
}

func setField(dst, src client.Object, n string) {
	d, s := reflect.ValueOf(dst).Elem().FieldByName(n), reflect.ValueOf(src).Elem().FieldByName(n)
	if d.IsValid() && s.IsValid() {
		d.Set(s)
	}
}

// Patch implements client.Interface. Apply patches are treated as merge patches.
func (f *Fake) Patch(_ context.Context, k client.Key, p client.Patch) (client.Object, error) {
	if err := f.react("patch", k, nil); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old, err := f.find(k)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	var after []byte
	switch p.Type {
	case types.StrategicMergePatchType:
		after, err = strategicpatch.StrategicMergePatch(before, p.Data, old)
	case types.JSONPatchType:
		var patch jsonpatch.Patch
		if patch, err = jsonpatch.DecodePatch(p.Data); err == nil {
			after, err = patch.Apply(before)
		}
	default:
		after, err = jsonpatch.MergePatch(before, p.Data)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	next := reflect.New(reflect.TypeOf(old).Elem()).Interface().(client.Object)
	if err := json.Unmarshal(after, next); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return f.update(k, next)
}

// Delete implements client.Interface.
func (f *Fake) Delete(_ context.Context, k client.Key, opts metav1.DeleteOptions) error {
	if err := f.react("delete", k, nil); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old, err := f.find(k)
	if err != nil {
		return err
	}
	if p := opts.Preconditions; p != nil && p.UID != nil && *p.UID != old.GetUID() {
		return apierrors.NewConflict(k.Resource.GroupResource(), k.Name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s)", *p.UID, old.GetUID()))
	}
	next := old.DeepCopyObject().(client.Object)
	wait := len(next.GetFinalizers()) > 0
	var grace int64
	if pod, ok := next.(*corev1.Pod); ok {
		grace = 30
		if pod.Spec.TerminationGracePeriodSeconds != nil {
			grace = *pod.Spec.TerminationGracePeriodSeconds
		}
		if opts.GracePeriodSeconds != nil {
			grace = *opts.GracePeriodSeconds
		}
		if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			grace = 0
		}
	}
	if !wait && grace == 0 {
		f.remove(k)
		return nil
	}
	if cur := next.GetDeletionGracePeriodSeconds(); next.GetDeletionTimestamp() != nil && (cur == nil || grace >= *cur) {
		return nil
	}
	at := metav1.NewTime(f.Now().Add(time.Duration(grace) * time.Second))
	next.SetDeletionTimestamp(&at)
	next.SetDeletionGracePeriodSeconds(&grace)
	next.SetGeneration(next.GetGeneration() + 1)
	f.put(k, next)
	return nil
}

// Resources implements client.Interface: the resources that hold or held objects.
func (f *Fake) Resources(context.Context) ([]client.ResourceInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []client.ResourceInfo
	for r, objs := range f.objects {
		info := client.ResourceInfo{Resource: r, Verbs: []string{"create", "delete", "get", "list", "patch", "update", "watch"}}
		for n, o := range objs {
			info.Namespaced = n.Namespace != ""
			info.Kind = reflect.TypeOf(o).Elem().Name()
		}
		out = append(out, info)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Resource.String() < out[j].Resource.String() })
	return out, nil
}

func (f *Fake) react(verb string, k client.Key, obj client.Object) error {
	if f.React == nil {
		return nil
	}
	return f.React(verb, k, obj)
}

func (f *Fake) put(k client.Key, obj client.Object) {
	f.rv++
	obj.SetResourceVersion(strconv.FormatInt(f.rv, 10))
	m := f.objects[k.Resource]
	if m == nil {
		m = map[types.NamespacedName]client.Object{}
		f.objects[k.Resource] = m
	}
	ev := client.Event{Type: client.Added, Object: obj}
	if old, ok := m[name(k)]; ok {
		ev.Type, ev.Old = client.Modified, old
	}
	m[name(k)] = obj
	f.emit(k.Resource, ev)
}

func (f *Fake) remove(k client.Key) {
	old := f.objects[k.Resource][name(k)]
	delete(f.objects[k.Resource], name(k))
	f.rv++
	f.emit(k.Resource, client.Event{Type: client.Deleted, Object: old, Old: old})
}

func (f *Fake) emit(r client.Resource, ev client.Event) {
	for _, s := range f.subs[r] {
		s.push(ev)
	}
}

// Cache implements client.Interface. Field selectors other than
// spec.nodeName=NAME on pods and metadata.name=NAME are ignored.
func (f *Fake) Cache(r client.Resource, fieldSelector string) client.Cache {
	return &cache{fake: f, resource: r, match: matcher(fieldSelector)}
}

type cache struct {
	fake     *Fake
	resource client.Resource
	match    func(client.Object) bool
}

func (c *cache) Get(ns, n string) (client.Object, bool) {
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	o, ok := c.fake.objects[c.resource][types.NamespacedName{Namespace: ns, Name: n}]
	if !ok || !c.match(o) {
		return nil, false
	}
	return o, true
}

func (c *cache) sorted() []client.Object {
	var out []client.Object
	for _, o := range c.fake.objects[c.resource] {
		if c.match(o) {
			out = append(out, o)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		return a.GetNamespace()+"/"+a.GetName() < b.GetNamespace()+"/"+b.GetName()
	})
	return out
}

func (c *cache) List(ns string, sel labels.Selector, visit func(client.Object) bool) {
	c.fake.mu.Lock()
	objs := c.sorted()
	c.fake.mu.Unlock()
	for _, o := range objs {
		if (ns == "" || o.GetNamespace() == ns) && (sel == nil || sel.Matches(labels.Set(o.GetLabels()))) && !visit(o) {
			return
		}
	}
}

func (c *cache) WaitSynced(context.Context) error { return nil }

func (c *cache) Subscribe(fn func(client.Event)) func() {
	s := &subscription{match: c.match, fn: fn}
	s.cond = sync.NewCond(&s.mu)
	f := c.fake
	f.mu.Lock()
	for _, o := range c.sorted() {
		s.push(client.Event{Type: client.Added, Object: o})
	}
	f.subs[c.resource] = append(f.subs[c.resource], s)
	f.mu.Unlock()
	go s.run()
	return func() {
		f.mu.Lock()
		f.subs[c.resource] = slices.DeleteFunc(f.subs[c.resource], func(x *subscription) bool { return x == s })
		f.mu.Unlock()
		s.stop()
	}
}
