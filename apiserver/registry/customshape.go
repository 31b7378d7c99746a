package registry

import (
	"math"
	"slices"
)

// customChange adds what replacing a custom object by another is. Their values
// have no Go types, so the shape tells the JSON types too: the schema may refuse
// some.
func (s *shape) customChange(a, b map[string]any) {
	for _, k := range keysOfBoth(a, b) {
		if k == "metadata" {
			// Its managed fields are the outcome, not a cause.
			x, ok1 := a[k].(map[string]any)
			y, ok2 := b[k].(map[string]any)
			if (ok1 || a[k] == nil) && (ok2 || b[k] == nil) {
				for _, m := range keysOfBoth(x, y) {
					if m != "managedFields" {
						s.customField(m, x, y)
					}
				}
				continue
			}
		}
		s.customField(k, a, b)
	}
}

func keysOfBoth(a, b map[string]any) []string {
	keys := make([]string, 0, max(len(a), len(b)))
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (s *shape) customField(key string, a, b map[string]any) {
	s.text(key)
	x, ok1 := a[key]
	y, ok2 := b[key]
	s.both(s.customType(x, ok1), s.customType(y, ok2))
	switch {
	case !ok1 || !ok2:
		// What appears or goes counts by the names and list items in it.
		s.customOne(x)
		s.customOne(y)
	default:
		m, isMap1 := x.(map[string]any)
		n, isMap2 := y.(map[string]any)
		_, isList1 := x.([]any)
		_, isList2 := y.([]any)
		switch {
		case isMap1 && isMap2:
			keys := keysOfBoth(m, n)
			s.number(len(keys))
			for _, k := range keys {
				s.customField(k, m, n)
			}
		case isMap1 || isMap2 || isList1 || isList2:
			s.customContents(x)
			s.customContents(y)
		default:
			if !s.vague && x == y {
				s.put(1)
			} else {
				s.put(0)
			}
		}
	}
}

// customOne adds a value that stands on one side alone: of scalars, their being there.
func (s *shape) customOne(v any) {
	switch v := v.(type) {
	case map[string]any:
		keys := keysOfBoth(v, nil)
		s.number(len(keys))
		for _, k := range keys {
			s.text(k)
			s.put(s.customType(v[k], true))
			s.customOne(v[k])
		}
	case []any:
		s.customContents(v)
	}
}

// customContents adds a value as it is.
func (s *shape) customContents(v any) {
	s.put(s.customType(v, true))
	switch v := v.(type) {
	case map[string]any:
		keys := keysOfBoth(v, nil)
		s.number(len(keys))
		for _, k := range keys {
			s.text(k)
			s.customContents(v[k])
		}
	case []any:
		s.number(len(v))
		for _, item := range v {
			s.customContents(item)
		}
	case string:
		s.text(v)
	case int64:
		s.number(int(v))
	case float64:
		s.number(int(math.Float64bits(v)))
	case bool:
		if v {
			s.put(1)
		} else {
			s.put(0)
		}
	}
}

// customType is a JSON value's type; whole numbers are a type of their own, and
// what is empty another than what is not.
func (s *shape) customType(v any, present bool) byte {
	if !present {
		return 0
	}
	switch v := v.(type) {
	case nil:
		return 1
	case string:
		if v == "" {
			return 2
		}
		return 3
	case bool:
		return 4
	case int64:
		return 5
	case float64:
		return 6
	case map[string]any:
		if len(v) == 0 {
			return 7
		}
		return 8
	case []any:
		if len(v) == 0 {
			return 9
		}
		return 10
	}
	s.vague = true // JSON does not have it
	return 11
}
