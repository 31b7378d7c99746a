package registry

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"knarr.dev/knarr/api"
	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
)

// configs are random parts of apply configurations.
var configs = []func(c map[string]any, n int){
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedField(c, fmt.Sprint(n%2), "metadata", "labels", fmt.Sprint("k", n%3))
	},
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedMap(c, map[string]any{}, "metadata", "annotations")
	},
	func(c map[string]any, n int) { _ = unstructured.SetNestedField(c, int64(n%3), "spec", "replicas") },
	func(c map[string]any, n int) { _ = unstructured.SetNestedField(c, n%2 == 0, "spec", "paused") },
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedField(c, int64(n%2), "spec", "minReadySeconds")
	},
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedField(c, []string{"Recreate", "RollingUpdate"}[n%2], "spec", "strategy", "type")
	},
	func(c map[string]any, n int) { // atomic
		_ = unstructured.SetNestedField(c, fmt.Sprint(n%2), "spec", "selector", "matchLabels", fmt.Sprint("k", n%3))
	},
	func(c map[string]any, n int) { // atomic
		_ = unstructured.SetNestedField(c, fmt.Sprint(n%2), "spec", "template", "spec", "nodeSelector", fmt.Sprint("k", n%3))
	},
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedField(c, fmt.Sprint(n%2, "m"), "spec", "template", "spec", "overhead", "cpu")
	},
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedField(c, int64(n%2), "status", "replicas")
	},
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedField(c, map[string]any{}, "spec", "template", "spec", "securityContext")
	},
	func(c map[string]any, n int) {
		_ = unstructured.SetNestedSlice(c, []any{map[string]any{"name": "c", "image": fmt.Sprint(n % 2)}}, "spec", "template", "spec", "containers")
	},
}

// The short way of server-side apply, where it is taken, does what the library does:
// over random histories of appliers and updaters, values, managed fields and errors
// are those of the general way.
func TestPlainApply(t *testing.T) {
	var k *kind.Kind
	for _, c := range api.Kinds() {
		if c.GVR() == deploymentsGVR {
			k = c
		}
	}
	r := &Registry{cfg: Config{Now: time.Now}}
	res := &Resource{Kind: k, managers: map[string]*managedfields.FieldManager{}}
	res.hub = res
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	short, longAgo := 0, time.Unix(1_700_000_000, 0)
	for history := 0; history < 100 || short < 3 && history < 2000; history++ {
		var live kind.Object = res.New()
		for step := range 12 {
			q := &Request{Resource: res, Name: "d", Namespace: "n", FieldManager: fmt.Sprint("m", rnd.IntN(2)), Force: rnd.IntN(3) == 0}
			if step > 0 && rnd.IntN(4) == 0 { // an update
				obj := live.DeepCopyObject().(*appsv1.Deployment)
				edits[rnd.IntN(len(edits))](obj, rnd.IntN(30))
				var got kind.Object = obj
				if err := r.manage(q, live, &got); err != nil {
					t.Fatal(err)
				}
				live = got
				continue
			}
			if step > 0 && rnd.IntN(4) == 0 {
				q.Subresource = "status"
			}
			config := map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "d", "namespace": "n"}}
			for range rnd.IntN(4) {
				configs[rnd.IntN(len(configs))](config, rnd.IntN(30))
			}
			data, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			for i := range live.GetManagedFields() {
				live.GetManagedFields()[i].Time = &metav1.Time{Time: longAgo}
			}
			describe := fmt.Sprintf("seed %d, step %d: %s by %s, subresource %q, force %v", seed, step, data, q.FieldManager, q.Subresource, q.Force)
			u := &unstructured.Unstructured{Object: config}
			want, wantErr := r.apply(q, live.DeepCopyObject().(kind.Object), u.DeepCopy())
			a := &applying{r: r, q: q, p: Patch{Data: data, Validation: "Strict"}, media: codec.JSON, config: u, plain: newPlainApply(q, data, config)}
			if a.plain != nil {
				if _, _, known := a.plain.apply(r, live); known {
					short++
				}
			}
			got, err := a.to(live)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("%s: %v, want %v", describe, err, wantErr)
			}
			if err != nil {
				continue
			}
			if !sameEntries(got.GetManagedFields(), want.GetManagedFields()) {
				t.Fatalf("%s: managed fields\n%v, want\n%v", describe, got.GetManagedFields(), want.GetManagedFields())
			}
			if a, b := old(got, longAgo), old(want, longAgo); a != b {
				t.Fatalf("%s: %d managers kept their time, want %d", describe, a, b)
			}
			x, y := got.DeepCopyObject().(kind.Object), want
			for _, obj := range []kind.Object{x, y} {
				codec.SetType(obj, res.GVK())
				r.default_(res, obj)
				obj.SetManagedFields(nil)
			}
			if !equality.Semantic.DeepEqual(x, y) {
				t.Fatalf("%s: made\n%v, want\n%v", describe, x, y)
			}
			live = got
		}
	}
	if short < 3 {
		t.Fatalf("seed %d: only %d went the short way", seed, short)
	}
	t.Logf("seed %d: %d went the short way", seed, short)
}

func old(obj kind.Object, at time.Time) (n int) {
	for _, e := range obj.GetManagedFields() {
		if e.Time != nil && e.Time.Time.Equal(at) {
			n++
		}
	}
	return n
}
