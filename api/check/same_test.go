package check

import (
	"math/rand"
	"reflect"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/randfill"
)

// TestSame holds Same against equality.Semantic: with random objects, and with copies
// of them in which one thing was changed, or only put differently.
func TestSame(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewSource(seed))
	fill := randfill.NewWithSeed(seed).NilChance(.3).NumElements(0, 3).MaxDepth(12).Funcs(
		func(q *resource.Quantity, c randfill.Continue) {
			*q = *resource.NewQuantity(int64(c.Intn(3)), resource.DecimalSI)
		},
		func(t *metav1.Time, c randfill.Continue) { *t = metav1.Unix(int64(c.Intn(3)), 0) },
		func(t *metav1.MicroTime, c randfill.Continue) { t.Time = time.Unix(int64(c.Intn(3)), 0) },
		func(e *runtime.RawExtension, c randfill.Continue) { c.Fill(&e.Raw) },
		func(o *runtime.Object, c randfill.Continue) {},
	)
	alike, different := 0, 0
	for range 300 {
		for _, obj := range []runtime.Object{
			&corev1.Pod{}, &corev1.Node{}, &corev1.ConfigMap{}, &corev1.Secret{}, &appsv1.Deployment{}, &batchv1.CronJob{},
			&coordinationv1.Lease{}, &networkingv1.Ingress{}, &resourcev1.ResourceClaim{}, &apiextensionsv1.CustomResourceDefinition{},
		} {
			fill.Fill(obj)
			other := obj.DeepCopyObject()
			for range 3 {
				want := equality.Semantic.DeepEqual(obj, other)
				if got := Same(obj, other); got != want {
					t.Fatalf("%T: %v, want %v:\n%+v\n%+v", obj, got, want, obj, other)
				}
				if want {
					alike++
				} else {
					different++
				}
				change(r, reflect.ValueOf(other).Elem())
			}
		}
	}
	if alike < 3000 || different < 1000 {
		t.Errorf("%d pairs were alike, %d different: too few", alike, different)
	}
}

// change walks to some place in v and changes what is there.
func change(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		switch x := v.Addr().Interface().(type) {
		case *resource.Quantity:
			if r.Intn(2) == 0 {
				x.Add(resource.MustParse("500m"))
			} else {
				*x = resource.MustParse(x.AsDec().String() + ".000") // the same
			}
			return
		case *metav1.Time:
			*x = metav1.NewTime(x.In(time.FixedZone("x", 3600))) // the same
			return
		case *metav1.MicroTime:
			x.Time = x.Add(time.Microsecond)
			return
		}
		if v.NumField() > 0 {
			change(r, v.Field(r.Intn(v.NumField())))
		}
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		} else if v.CanSet() && r.Intn(4) == 0 {
			v.SetZero()
		} else {
			change(r, v.Elem())
		}
	case reflect.Slice:
		switch {
		case v.IsNil():
			v.Set(reflect.MakeSlice(v.Type(), 0, 0)) // the same
		case v.Len() == 0:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		case r.Intn(4) == 0:
			v.Set(v.Slice(0, v.Len()-1))
		default:
			change(r, v.Index(r.Intn(v.Len())))
		}
	case reflect.Map:
		switch {
		case v.IsNil():
			v.Set(reflect.MakeMap(v.Type())) // the same
		case v.Len() == 0:
			v.SetMapIndex(reflect.Zero(v.Type().Key()), reflect.Zero(v.Type().Elem()))
		default:
			key := v.MapKeys()[r.Intn(v.Len())]
			value := reflect.New(v.Type().Elem()).Elem()
			value.Set(v.MapIndex(key))
			if change(r, value); r.Intn(4) == 0 {
				value = reflect.Value{} // without it
			}
			v.SetMapIndex(key, value)
		}
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(v.Int() ^ 1)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() ^ 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	}
}

func TestSameOfNothing(t *testing.T) {
	for _, c := range []struct {
		a, b any
		want bool
	}{
		{nil, nil, true}, {nil, 1, false}, {1, int64(1), false}, {(*corev1.Pod)(nil), (*corev1.Pod)(nil), true},
		{(*corev1.Pod)(nil), &corev1.Pod{}, false}, {map[string]any{"a": []any{int64(1)}}, map[string]any{"a": []any{int64(1)}}, true},
		{map[string]any{"a": int64(1)}, map[string]any{"a": 1.0}, false}, {map[string]any{"a": nil}, map[string]any{"b": nil}, false},
	} {
		if got := Same(c.a, c.b); got != c.want || got != equality.Semantic.DeepEqual(c.a, c.b) {
			t.Errorf("%v, %v: %v", c.a, c.b, got)
		}
	}
}

func BenchmarkSame(b *testing.B) {
	pod := &corev1.Pod{}
	randfill.NewWithSeed(1).NilChance(.3).NumElements(1, 3).MaxDepth(10).Funcs(func(*runtime.Object, randfill.Continue) {}).Fill(pod)
	other := pod.DeepCopy()
	for name, f := range map[string]func(a, b any) bool{"ours": Same, "semantic": equality.Semantic.DeepEqual} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !f(pod, other) {
					b.Fatal("a copy is different")
				}
			}
		})
	}
}
