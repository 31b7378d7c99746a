package crd

import "time"

// plainMeta tells whether metadata has its canonical form already, as most does:
// then it need not be read into its type and written back. false says nothing.
func plainMeta(meta any) bool {
	m, ok := meta.(map[string]any)
	if !ok {
		return false
	}
	for k, v := range m {
		switch k {
		case "name", "namespace", "generateName", "uid", "resourceVersion", "selfLink":
			if s, ok := v.(string); !ok || s == "" {
				return false
			}
		case "generation":
			if n, ok := v.(int64); !ok || n == 0 {
				return false
			}
		case "creationTimestamp":
			if !plainTime(v) {
				return false
			}
		case "labels", "annotations":
			if !plainStrings(v) {
				return false
			}
		case "finalizers":
			l, ok := v.([]any)
			if !ok || len(l) == 0 {
				return false
			}
			for _, f := range l {
				if _, ok := f.(string); !ok {
					return false
				}
			}
		case "managedFields":
			if !plainManaged(v) {
				return false
			}
		default:
			return false
		}
	}
	return len(m) > 0
}

func plainTime(v any) bool {
	s, ok := v.(string)
	if !ok {
		return false
	}
	t, err := time.Parse(time.RFC3339, s)
	return err == nil && t.UTC().Format(time.RFC3339) == s
}

func plainStrings(v any) bool {
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		return false
	}
	for _, v := range m {
		if _, ok := v.(string); !ok {
			return false
		}
	}
	return true
}

func plainManaged(v any) bool {
	l, ok := v.([]any)
	if !ok || len(l) == 0 {
		return false
	}
	for _, e := range l {
		m, ok := e.(map[string]any)
		if !ok {
			return false
		}
		for k, v := range m {
			switch k {
			case "manager", "operation", "apiVersion", "fieldsType", "subresource":
				if s, ok := v.(string); !ok || s == "" {
					return false
				}
			case "time":
				if !plainTime(v) {
					return false
				}
			case "fieldsV1":
				if _, ok := v.(map[string]any); !ok {
					return false
				}
			default:
				return false
			}
		}
	}
	return true
}
