package registry

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A shape is all that decides who comes to own which field when an object
// replaces another of its type: which fields and map keys either has, which
// values differ, and what lists contain (keys of their items are values).
// Values outside lists only count by presence and equality, so writes that do
// the same thing to different objects have the same shape.
type shape struct {
	bytes []byte // self-delimiting: two shapes are equal if their bytes are
	vague bool   // something was met whose shape is not known
}

var (
	managedFieldsType = reflect.TypeFor[[]metav1.ManagedFieldsEntry]()
	timeType          = reflect.TypeFor[metav1.Time]()
	textsType         = reflect.TypeFor[map[string]string]()
	marshalerType     = reflect.TypeFor[json.Marshaler]()
)

// layout is what is asked of a type again and again.
type layout struct {
	marshals bool           // it writes its own JSON
	hidden   bool           // a structure with fields that are not exported
	fields   []reflect.Type // of a structure
}

// layouts are those of the types met so far.
var layouts sync.Map // reflect.Type to *layout

func layoutOf(t reflect.Type) *layout {
	if l, ok := layouts.Load(t); ok {
		return l.(*layout)
	}
	l := &layout{marshals: t.Implements(marshalerType) || reflect.PointerTo(t).Implements(marshalerType)}
	if t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			f := t.Field(i)
			l.fields = append(l.fields, f.Type)
			l.hidden = l.hidden || !f.IsExported()
		}
	}
	layouts.Store(t, l)
	return l
}

// presence of a value that may be absent (its parent is), nil, zero or set.
const (
	absent byte = iota
	isNil
	isZero
	isSet
)

func (s *shape) put(b byte)     { s.bytes = append(s.bytes, b) }
func (s *shape) number(n int)   { s.bytes = binary.AppendVarint(s.bytes, int64(n)) }
func (s *shape) text(t string)  { s.number(len(t)); s.bytes = append(s.bytes, t...) }
func (s *shape) both(a, b byte) { s.put(a<<4 | b) }

// change adds what replacing a by b is; either may be absent (invalid).
func (s *shape) change(t reflect.Type, a, b reflect.Value) {
	switch {
	case t == managedFieldsType: // the outcome, not a cause
		return
	case t == timeType:
		s.scalar(a, b, func() bool {
			return a.Interface().(metav1.Time).Unix() == b.Interface().(metav1.Time).Unix()
		})
		return
	}
	known := layoutOf(t)
	if known.marshals {
		s.contents(a)
		s.contents(b)
		return
	}
	switch t.Kind() {
	case reflect.Pointer:
		s.both(presence(a), presence(b))
		if a, b = elem(a), elem(b); a.IsValid() || b.IsValid() {
			s.change(t.Elem(), a, b)
		}
	case reflect.Struct:
		pa, pb := presence(a), presence(b)
		s.both(pa, pb)
		if pa != isSet && pb != isSet {
			return
		}
		if known.hidden {
			s.vague = true
			return
		}
		for i, f := range known.fields {
			s.change(f, member(a, i), member(b, i))
		}
	case reflect.Map:
		s.maps(t, a, b)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			s.scalar(a, b, func() bool { return bytes.Equal(a.Bytes(), b.Bytes()) })
			return
		}
		s.contents(a)
		s.contents(b)
	case reflect.Interface, reflect.Array, reflect.Chan, reflect.Func, reflect.UnsafePointer:
		s.vague = true
	default:
		s.scalar(a, b, func() bool { return a.Equal(b) })
	}
}

func (s *shape) scalar(a, b reflect.Value, equal func() bool) {
	s.both(presence(a), presence(b))
	if a.IsValid() && b.IsValid() {
		s.bit(equal())
	}
}

func (s *shape) bit(v bool) {
	if v {
		s.put(1)
	} else {
		s.put(0)
	}
}

func (s *shape) maps(t reflect.Type, a, b reflect.Value) {
	s.both(presence(a), presence(b))
	if t.Key().Kind() != reflect.String {
		s.vague = true
		return
	}
	if t == textsType {
		s.texts(texts(a), texts(b))
		return
	}
	var keys []string
	for _, m := range []reflect.Value{a, b} {
		if m.IsValid() {
			for _, k := range m.MapKeys() {
				keys = append(keys, k.String())
			}
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	s.number(len(keys))
	for _, k := range keys {
		s.text(k)
		key := reflect.ValueOf(k).Convert(t.Key())
		s.change(t.Elem(), valueAt(a, key), valueAt(b, key))
	}
}

// texts does what maps does for the most usual kind of map, without reflection.
func (s *shape) texts(a, b map[string]string) {
	keys := make([]string, 0, 16)
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, both := a[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	s.number(len(keys))
	for _, k := range keys {
		s.text(k)
		x, inA := a[k]
		y, inB := b[k]
		if s.both(textPresence(x, inA), textPresence(y, inB)); inA && inB {
			s.bit(x == y)
		}
	}
}

func texts(v reflect.Value) map[string]string {
	if !v.IsValid() {
		return nil
	}
	return v.Interface().(map[string]string)
}

func textPresence(v string, there bool) byte {
	switch {
	case !there:
		return absent
	case v == "":
		return isZero
	}
	return isSet
}

// contents adds a value as it is.
func (s *shape) contents(v reflect.Value) {
	p := presence(v)
	if s.put(p); p == absent || p == isNil {
		return
	}
	t := v.Type()
	known := layoutOf(t)
	if known.marshals && t.Kind() != reflect.Pointer {
		m, ok := v.Interface().(json.Marshaler)
		if !ok {
			s.vague = true
			return
		}
		text, err := m.MarshalJSON()
		if s.vague = s.vague || err != nil; err == nil {
			s.text(string(text))
		}
		return
	}
	switch t.Kind() {
	case reflect.Pointer:
		s.contents(v.Elem())
	case reflect.Struct:
		if p == isZero {
			return
		}
		if known.hidden {
			s.vague = true
			return
		}
		for i := range known.fields {
			s.contents(v.Field(i))
		}
	case reflect.Slice:
		s.number(v.Len())
		for i := range v.Len() {
			s.contents(v.Index(i))
		}
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			s.vague = true
			return
		}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(x, y reflect.Value) int { return bytes.Compare([]byte(x.String()), []byte(y.String())) })
		s.number(len(keys))
		for _, k := range keys {
			s.text(k.String())
			s.contents(v.MapIndex(k))
		}
	case reflect.String:
		s.text(v.String())
	case reflect.Bool: // the presence says it
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		s.number(int(v.Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		s.bytes = binary.AppendUvarint(s.bytes, v.Uint())
	case reflect.Float32, reflect.Float64:
		s.bytes = binary.AppendUvarint(s.bytes, math.Float64bits(v.Float()))
	default:
		s.vague = true
	}
}

func presence(v reflect.Value) byte {
	if !v.IsValid() {
		return absent
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Interface:
		if v.IsNil() {
			return isNil
		}
		if v.Kind() != reflect.Pointer && v.Kind() != reflect.Interface && v.Len() == 0 {
			return isZero
		}
		return isSet
	}
	if v.IsZero() {
		return isZero
	}
	return isSet
}

func elem(p reflect.Value) reflect.Value {
	if !p.IsValid() {
		return p
	}
	return p.Elem() // invalid for nil
}

func member(v reflect.Value, i int) reflect.Value {
	if !v.IsValid() {
		return v
	}
	return v.Field(i)
}

func valueAt(m, key reflect.Value) reflect.Value {
	if !m.IsValid() {
		return m
	}
	return m.MapIndex(key)
}
