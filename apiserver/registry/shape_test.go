package registry

import (
	"bytes"
	"reflect"
	"testing"
)

// TestShapeOfTexts holds the short way of the most usual maps against the general one.
func TestShapeOfTexts(t *testing.T) {
	type general map[string]string
	for name, c := range map[string]struct{ a, b map[string]string }{
		"neither":         {nil, nil},
		"empty":           {map[string]string{}, nil},
		"new":             {nil, map[string]string{"x": "1", "b": ""}},
		"gone":            {map[string]string{"x": "1"}, nil},
		"changed":         {map[string]string{"x": "1", "y": "2", "z": "", "w": "4"}, map[string]string{"x": "1", "y": "3", "z": "9", "v": "5"}},
		"emptied":         {map[string]string{"x": "1"}, map[string]string{"x": ""}},
		"keys run across": {map[string]string{"ab": "c"}, map[string]string{"a": "bc"}},
	} {
		t.Run(name, func(t *testing.T) {
			var short, long shape
			short.change(textsType, reflect.ValueOf(c.a), reflect.ValueOf(c.b))
			long.change(reflect.TypeFor[general](), reflect.ValueOf(general(c.a)), reflect.ValueOf(general(c.b)))
			if short.vague || !bytes.Equal(short.bytes, long.bytes) {
				t.Errorf("%x, want %x", short.bytes, long.bytes)
			}
		})
	}
	var none shape // a parent that is not there
	none.change(textsType, reflect.Value{}, reflect.ValueOf(map[string]string{"x": "1"}))
	var other shape
	other.change(reflect.TypeFor[general](), reflect.Value{}, reflect.ValueOf(general{"x": "1"}))
	if !bytes.Equal(none.bytes, other.bytes) {
		t.Errorf("%x, want %x", none.bytes, other.bytes)
	}
}
