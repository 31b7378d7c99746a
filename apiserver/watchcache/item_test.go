package watchcache

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"knarr.dev/knarr/api/kind"
)

func TestStamped(t *testing.T) {
	for name, obj := range map[string]kind.Object{
		"typed":  &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "3", Labels: map[string]string{"x": "y"}}, Data: map[string]string{"k": "v"}},
		"custom": &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "a", "resourceVersion": "3"}, "spec": map[string]any{"k": "v"}}},
		"bare":   &unstructured.Unstructured{Object: map[string]any{"spec": int64(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			before := obj.DeepCopyObject().(kind.Object)
			want := obj.DeepCopyObject().(kind.Object)
			want.SetResourceVersion("7")
			if got := Stamped("ns/a", obj, 7); got.Revision != 7 || !reflect.DeepEqual(got.Object, want) {
				t.Errorf("%+v, want %+v", got.Object, want)
			}
			if !reflect.DeepEqual(obj, before) {
				t.Errorf("the object has become %+v", obj)
			}
		})
	}
}

// TestKept looks at what stays of encodings: those that readers share, while the item
// is the present one.
func TestKept(t *testing.T) {
	it := NewItem("ns/a", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, 3)
	encode := func(it *Item) (json, proto []byte) {
		json, err := it.JSON()
		if err != nil {
			t.Fatal(err)
		}
		proto, err = it.Sealed()
		if err != nil {
			t.Fatal(err)
		}
		return json, proto
	}
	kept := func() bool { return it.json.Load() != nil || it.proto.Load() != nil }
	json, proto := encode(it.Apart())
	if kept() {
		t.Error("what one reader wanted was kept")
	}
	json2, proto2 := encode(it)
	if string(json) != string(json2) || string(proto) != string(proto2) {
		t.Errorf("%s and %s, %q and %q", json, json2, proto, proto2)
	}
	if it.json.Load() == nil || it.proto.Load() == nil || it.Apart() != it {
		t.Error("what readers share was not kept, or not used by one")
	}
	if cap(json2) > len(json2)+len(json2)/4+16 {
		t.Errorf("%d bytes are kept in a piece of %d", len(json2), cap(json2))
	}
	it.replaced()
	if kept() {
		t.Error("encodings of an item that was replaced were kept")
	}
}
