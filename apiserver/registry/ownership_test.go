package registry

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"knarr.dev/knarr/api"
	"knarr.dev/knarr/api/kind"
)

// edits are random changes that touch every kind of field that ownership treats
// on its own: maps, keyed and atomic lists, sets, pointers, quantities, times.
var edits = []func(d *appsv1.Deployment, n int){
	func(d *appsv1.Deployment, n int) { put(&d.Labels, n) },
	func(d *appsv1.Deployment, n int) { put(&d.Annotations, n) },
	func(d *appsv1.Deployment, n int) { delete(d.Labels, fmt.Sprint("k", n%3)) },
	func(d *appsv1.Deployment, n int) { d.Labels = nil },
	func(d *appsv1.Deployment, n int) { d.Spec.Replicas = new(int32(n % 3)) },
	func(d *appsv1.Deployment, n int) { d.Spec.Replicas = nil },
	func(d *appsv1.Deployment, n int) { d.Spec.Paused = n%2 == 0 },
	func(d *appsv1.Deployment, n int) { d.Spec.MinReadySeconds = int32(n % 2) },
	func(d *appsv1.Deployment, n int) {
		v := intstr.FromInt32(int32(n % 2))
		if n%3 == 0 {
			v = intstr.FromString("25%")
		}
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &v}
	},
	func(d *appsv1.Deployment, n int) { d.Spec.Selector = nil },
	func(d *appsv1.Deployment, n int) {
		d.Spec.Selector = &metav1.LabelSelector{}
		put(&d.Spec.Selector.MatchLabels, n)
	},
	func(d *appsv1.Deployment, n int) { put(&d.Spec.Template.Spec.NodeSelector, n) },
	func(d *appsv1.Deployment, n int) {
		d.Finalizers = append(d.Finalizers[:0:0], fmt.Sprint("f/", n%2), "f/x")
	},
	func(d *appsv1.Deployment, n int) {
		c := corev1.Container{Name: fmt.Sprint("c", n%3), Image: fmt.Sprint("i", n%2), Args: []string{fmt.Sprint(n % 2)}}
		c.Env = []corev1.EnvVar{{Name: fmt.Sprint("E", n%2), Value: fmt.Sprint(n % 3)}}
		if n%2 == 0 {
			c.Ports = []corev1.ContainerPort{{ContainerPort: int32(80 + n%2), Protocol: "TCP"}}
			c.Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse(fmt.Sprint(n%3, "m"))}
		}
		d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers[:0:0], c)
	},
	func(d *appsv1.Deployment, n int) { d.Spec.Template.Spec.Containers = nil },
	func(d *appsv1.Deployment, n int) {
		d.Spec.Template.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse(fmt.Sprint(n%2, "m"))}
	},
	func(d *appsv1.Deployment, n int) { d.DeletionTimestamp = &metav1.Time{Time: time.Unix(int64(n%2), 5)} },
	func(d *appsv1.Deployment, n int) { d.Status.Replicas = int32(n % 2) },
	func(d *appsv1.Deployment, n int) {
		d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentConditionType(fmt.Sprint("t", n%2)), Status: "True", LastUpdateTime: metav1.Unix(int64(n%2), 0)}}
	},
}

func put(m *map[string]string, n int) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[fmt.Sprint("k", n%3)] = fmt.Sprint(n % 5)
}

// TestRememberedOwnership holds that remembering changes nothing: over random
// histories the managed fields are those that the library computes each time.
func TestRememberedOwnership(t *testing.T) {
	var k *kind.Kind
	for _, c := range api.Kinds() {
		if c.GVR() == deploymentsGVR {
			k = c
		}
	}
	now := time.Unix(1_800_000_000, 0)
	r := &Registry{cfg: Config{Now: func() time.Time { return now }}}
	res := &Resource{Kind: k, managers: map[string]*managedfields.FieldManager{}}
	res.hub = res
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	hits := 0
	for range 600 {
		var old kind.Object = res.New()
		for step := range 12 {
			obj := old.DeepCopyObject().(*appsv1.Deployment)
			obj.SetGroupVersionKind(res.GVK())
			obj.Name, obj.UID = fmt.Sprint("n", rnd.IntN(50)), "u"
			for range rnd.IntN(3) {
				edits[rnd.IntN(len(edits))](obj, rnd.IntN(30))
			}
			if rnd.IntN(2) == 0 {
				obj.ManagedFields = nil
			}
			q := &Request{Resource: res, FieldManager: fmt.Sprint("m", rnd.IntN(2))}
			if step > 0 && rnd.IntN(4) == 0 {
				q.Subresource = "status"
			}
			m, err := r.manager(res, q.Subresource)
			if err != nil {
				t.Fatal(err)
			}
			want := m.UpdateNoErrors(old.DeepCopyObject(), obj.DeepCopyObject(), q.FieldManager).(kind.Object)
			if key, ok := ownershipKey(q, old, obj, owned(old), owned(obj)); ok {
				if _, ok := r.ownerships.find(key); ok {
					hits++
				}
			}
			var got kind.Object = obj
			if err := r.manage(q, old, &got); err != nil {
				t.Fatal(err)
			}
			if !sameEntries(got.GetManagedFields(), want.GetManagedFields()) {
				t.Fatalf("seed %d, step %d by %s %q: managed fields\n%v, want\n%v", seed, step, q.FieldManager, q.Subresource, got.GetManagedFields(), want.GetManagedFields())
			}
			old = got
		}
	}
	if hits < 100 {
		t.Fatalf("seed %d: only %d outcomes were remembered ones", seed, hits)
	}
	t.Logf("seed %d: %d remembered", seed, hits)
}

// sameEntries compares as sets: the order follows the times, and the library's
// clock is not the test's.
func sameEntries(a, b []metav1.ManagedFieldsEntry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		found := false
		for j := range b {
			found = found || sameManagedFields(a[i:i+1], b[j:j+1])
		}
		if !found {
			return false
		}
	}
	return true
}

// Who remembers an outcome for custom objects keeps each object's own times: those
// of other managers stay, the writer's is now.
func TestCustomTimesStay(t *testing.T) {
	now := time.Unix(1_900_000_000, 0)
	r := &Registry{cfg: Config{Now: func() time.Time { return now }}}
	deduced := managedfields.NewDeducedTypeConverter()
	empty := func() kind.Object {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Thing", "metadata": map[string]any{"name": "x"}}}
	}
	res := &Resource{managers: map[string]*managedfields.FieldManager{}, Kind: &kind.Kind{Group: "example.com", Version: "v1", Kind: "Thing", Resource: "things", New: empty,
		Managed: func() (kind.Managed, error) {
			return kind.Managed{Types: deduced, Convertor: single{empty}, Creater: single{empty}}, nil
		}}}
	res.hub = res
	for i, test := range []struct{ owns string }{
		{""}, {""}, // the second is remembered
		{"b"}, {"b"}, // the writer owns b already
	} {
		old := empty().(*unstructured.Unstructured)
		old.Object["spec"] = map[string]any{"a": "1", "b": fmt.Sprint("v", i)}
		at := time.Date(2020, 1, 1+i, 0, 0, 0, 0, time.UTC)
		entry := func(manager, field string, at time.Time) metav1.ManagedFieldsEntry {
			return metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "example.com/v1", Time: &metav1.Time{Time: at},
				FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: fmt.Appendf(nil, `{"f:spec":{"f:%s":{}}}`, field)}}
		}
		entries := []metav1.ManagedFieldsEntry{entry("other", "a", at)}
		if test.owns != "" {
			entries = append(entries, entry("me", "b", at.Add(time.Hour)))
		}
		old.SetManagedFields(entries)
		var obj kind.Object = old.DeepCopy()
		if err := unstructured.SetNestedField(obj.(*unstructured.Unstructured).Object, fmt.Sprint("w", i), "spec", "b"); err != nil {
			t.Fatal(err)
		}
		q := &Request{Resource: res, FieldManager: "me"}
		if key, ok := ownershipKey(q, old, obj, owned(old), owned(obj)); !ok {
			t.Fatalf("%d: the outcome cannot be remembered", i)
		} else if _, known := r.ownerships.find(key); known != (i%2 == 1) {
			t.Fatalf("%d: remembered: %v", i, known)
		}
		if err := r.manage(q, old, &obj); err != nil {
			t.Fatal(err)
		}
		if got, want := owned(obj), obj.GetManagedFields(); !sameEntries(got, want) || len(got) != 2 {
			t.Fatalf("%d: read as %v, want %v", i, got, want)
		}
		for _, e := range obj.GetManagedFields() {
			switch {
			case e.Manager == "other" && !e.Time.Time.Equal(at):
				t.Errorf("%d: the other manager's time is %v, want %v", i, e.Time, at)
			case e.Manager == "me" && i%2 == 1 && !e.Time.Time.Equal(now):
				t.Errorf("%d: the writer has time %v, want %v", i, e.Time, now)
			}
		}
	}
}
