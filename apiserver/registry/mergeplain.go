package registry

import (
	"encoding/json"
	"reflect"
	"strings"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
)

// mergePlain applies the merge patches that most clients send, those that only
// set values, by reading the patch onto a copy of the object: no encoding of the
// whole and no second decoding. ok is false if the patch may do more, or is at
// fault: then the general way decides.
//
// Reading is merging as long as the decoder meets no null and no list, does not
// replace an object by another (the values of a map), and no type decodes itself.
func mergePlain(q *Request, old kind.Object, data []byte) (obj kind.Object, ok bool) {
	var patch map[string]any
	if json.Unmarshal(data, &patch) != nil || patch == nil {
		return nil, false
	}
	_, hasKind := patch["kind"]
	_, hasVersion := patch["apiVersion"]
	t := reflect.TypeOf(old)
	if hasKind || hasVersion || t.Kind() != reflect.Pointer || !plain(t, patch) {
		return nil, false
	}
	obj = old.DeepCopyObject().(kind.Object)
	// Strict: a field that is unknown or appears twice is for the general way.
	out, _, err := codec.Decode(data, codec.JSON, q.Resource.GVK(), obj, true)
	return obj, err == nil && out == obj
}

// plain tells whether decoding v into a t that has a value already merges the two.
func plain(t reflect.Type, v any) bool {
	switch v.(type) {
	case nil, []any:
		return false
	}
	if t.Implements(unmarshalerType) || reflect.PointerTo(t).Implements(unmarshalerType) {
		return false
	}
	fields, isObject := v.(map[string]any)
	switch t.Kind() {
	case reflect.Pointer:
		return plain(t.Elem(), v)
	case reflect.Struct:
		if !isObject {
			return false
		}
		for name, value := range fields {
			f, ok := fieldNamed(t, name)
			if !ok || !plain(f, value) {
				return false
			}
		}
		return true
	case reflect.Map:
		if !isObject {
			return false
		}
		for _, value := range fields {
			switch value.(type) {
			case nil, []any, map[string]any:
				return false
			}
		}
		return true
	case reflect.Interface:
		return false
	}
	return !isObject
}

var unmarshalerType = reflect.TypeFor[json.Unmarshaler]()

// fieldNamed finds a struct's field by its name in JSON.
func fieldNamed(t reflect.Type, name string) (reflect.Type, bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return f.Type, true
		}
		if tag == "" && f.Anonymous && f.Type.Kind() == reflect.Struct {
			if inner, ok := fieldNamed(f.Type, name); ok {
				return inner, true
			}
		}
	}
	return nil, false
}
