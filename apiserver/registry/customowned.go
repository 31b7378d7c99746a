package registry

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"knarr.dev/knarr/api/kind"
)

// owned returns an object's managed fields, as its GetManagedFields does. Those of a
// custom object are read without reflection if they have their usual form: each
// write looks at them several times.
func owned(obj kind.Object) []metav1.ManagedFieldsEntry {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj.GetManagedFields()
	}
	list, ok := rawOwned(u)
	if !ok {
		return u.GetManagedFields()
	}
	if list == nil {
		return nil
	}
	out := make([]metav1.ManagedFieldsEntry, len(list))
	for i, v := range list {
		if !entryOf(v, &out[i]) {
			return u.GetManagedFields()
		}
	}
	return out
}

func rawOwned(u *unstructured.Unstructured) (list []any, ok bool) {
	meta, ok := u.Object["metadata"].(map[string]any)
	if !ok {
		return nil, u.Object["metadata"] == nil
	}
	v, there := meta["managedFields"]
	if !there {
		return nil, true
	}
	list, ok = v.([]any)
	return list, ok
}

// entryOf reads an entry; false if it has an unusual form.
func entryOf(v any, e *metav1.ManagedFieldsEntry) bool {
	m, ok := v.(map[string]any)
	if !ok {
		return false
	}
	for k, v := range m {
		if k == "fieldsV1" {
			set, ok := v.(map[string]any)
			if !ok {
				return false
			}
			raw, ok := appendFields(nil, set)
			if !ok {
				return false
			}
			e.FieldsV1 = &metav1.FieldsV1{Raw: raw}
			continue
		}
		s, ok := v.(string)
		if !ok {
			return false
		}
		switch k {
		case "manager":
			e.Manager = s
		case "operation":
			e.Operation = metav1.ManagedFieldsOperationType(s)
		case "apiVersion":
			e.APIVersion = s
		case "fieldsType":
			e.FieldsType = s
		case "subresource":
			e.Subresource = s
		case "time":
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				return false
			}
			e.Time = &metav1.Time{Time: t.Local()}
		default:
			return false
		}
	}
	return true
}

// appendFields adds a set of fields as json.Marshal writes it: objects in objects.
func appendFields(b []byte, set map[string]any) ([]byte, bool) {
	b = append(b, '{')
	for i, k := range slices.Sorted(maps.Keys(set)) {
		sub, ok := set[k].(map[string]any)
		if !ok {
			return nil, false
		}
		if i > 0 {
			b = append(b, ',')
		}
		if plainText(k) {
			b = append(b, '"')
			b = append(b, k...)
			b = append(b, '"', ':')
		} else {
			q, err := json.Marshal(k)
			if err != nil {
				return nil, false
			}
			b = append(append(b, q...), ':')
		}
		if b, ok = appendFields(b, sub); !ok {
			return nil, false
		}
	}
	return append(b, '}'), true
}

// plainText tells whether a string stands in JSON as it is.
func plainText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

// own gives obj the managed fields that o tells, after those of before.
func (o ownership) own(obj kind.Object, before []metav1.ManagedFieldsEntry, now time.Time) {
	list := o.after(before, now)
	u, custom := obj.(*unstructured.Unstructured)
	if !custom {
		out := make([]metav1.ManagedFieldsEntry, len(list))
		for i := range list {
			out[i] = list[i].ManagedFieldsEntry
		}
		obj.SetManagedFields(out)
		return
	}
	raw := make([]any, len(list))
	for i := range list {
		e := &list[i]
		m := map[string]any{"apiVersion": e.APIVersion, "fieldsType": e.FieldsType, "fieldsV1": e.set, "operation": string(e.Operation), "time": e.Time.UTC().Format(time.RFC3339)}
		for k, v := range map[string]string{"manager": e.Manager, "subresource": e.Subresource} {
			if v != "" {
				m[k] = v
			}
		}
		raw[i] = m
	}
	meta, ok := u.Object["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		u.Object["metadata"] = meta
	}
	meta["managedFields"] = raw
}

// customUnchanged is unchanged for custom objects whose managed fields are the same.
func customUnchanged(a, b map[string]any) bool {
	return sameBut(a, b, func(k string) bool {
		if k != "metadata" {
			return false
		}
		x, ok1 := a[k].(map[string]any)
		y, ok2 := b[k].(map[string]any)
		return ok1 && ok2 && sameBut(x, y, func(k string) bool { return k == "managedFields" || k == "resourceVersion" })
	})
}

// sameBut compares maps, but for the keys of which same is sure.
func sameBut(a, b map[string]any, same func(key string) bool) bool {
	for _, k := range keysOfBoth(a, b) {
		x, ok1 := a[k]
		y, ok2 := b[k]
		if !same(k) && (ok1 != ok2 || !equality.Semantic.DeepEqual(x, y)) {
			return false
		}
	}
	return true
}

// setOf is a set of fields as an object, for custom objects to share.
func setOf(f *metav1.FieldsV1) (set map[string]any, err error) {
	d := json.NewDecoder(bytes.NewReader(f.Raw))
	err = d.Decode(&set)
	return set, err
}
