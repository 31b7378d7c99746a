package kind

import (
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The functions of a Kind take any Object; the functions below make them from
// ones of the kind's own type, which is where the one type assertion is. An
// object of another type is a programming error and panics.

// Each adapts a function that changes an object.
func Each[T any](f func(*T)) func(Object) {
	return func(o Object) { f(any(o).(*T)) }
}

// Pair adapts a function that changes an object by what it was before.
func Pair[T any](f func(obj, old *T)) func(obj, old Object) {
	return func(obj, old Object) { f(any(obj).(*T), any(old).(*T)) }
}

// Check adapts a validation.
func Check[T any](f func(*T) field.ErrorList) func(Object) field.ErrorList {
	return func(o Object) field.ErrorList { return f(any(o).(*T)) }
}

// CheckChange adapts the validation of a change.
func CheckChange[T any](f func(obj, old *T) field.ErrorList) func(obj, old Object) field.ErrorList {
	return func(obj, old Object) field.ErrorList { return f(any(obj).(*T), any(old).(*T)) }
}

// FieldsOf adapts the selectable fields.
func FieldsOf[T any](f func(*T) fields.Set) func(Object) fields.Set {
	return func(o Object) fields.Set { return f(any(o).(*T)) }
}

// RowOf adapts a table row.
func RowOf[T any](f func(o *T, now time.Time) []any) func(Object, time.Time) []any {
	return func(o Object, now time.Time) []any { return f(any(o).(*T), now) }
}

// ScaleOf declares a Scale by where its parts are in an object of the kind.
// spec returns the place of the wanted replicas.
func ScaleOf[T any](spec func(*T) **int32, status func(*T) int32, selector func(*T) string) *Scale {
	return &Scale{
		Replicas: func(o Object) int32 {
			if p := *spec(any(o).(*T)); p != nil {
				return *p
			}
			return 0
		},
		SetReplicas:    func(o Object, n int32) { *spec(any(o).(*T)) = &n },
		StatusReplicas: func(o Object) int32 { return status(any(o).(*T)) },
		Selector:       func(o Object) string { return selector(any(o).(*T)) },
	}
}

// KeepAllButStatus is the usual PrepareStatus: obj keeps its own metadata and
// status, all else becomes what it was in old.
func KeepAllButStatus(obj, old Object) {
	dst, src := reflect.ValueOf(obj), reflect.ValueOf(old.DeepCopyObject())
	if dst.Type() != src.Type() || dst.Elem().Kind() != reflect.Struct {
		return
	}
	dst, src = dst.Elem(), src.Elem()
	for i := range dst.NumField() {
		switch dst.Type().Field(i).Name {
		case "TypeMeta", "ObjectMeta", "Status":
		default:
			dst.Field(i).Set(src.Field(i))
		}
	}
}
