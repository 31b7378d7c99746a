// Package env computes a container's environment: $(VAR) expansion and the
// variables that announce services. Everything here is a pure function.
//
// The rules are those of
// https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables
// and https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables.
package env

import "strings"

// Expand replaces each $(NAME) in s by lookup(NAME). "$$" stands for one dollar
// sign, so "$$(NAME)" yields the text "$(NAME)". A reference to an unknown name
// and an unfinished reference stay as they are written.
func Expand(s string, lookup func(name string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		rest := s[i+1:]
		switch rest[0] {
		case '$':
			b.WriteByte('$')
			s = rest[1:]
		case '(':
			end := strings.IndexByte(rest, ')')
			if end < 0 {
				b.WriteString("$(")
				s = rest[1:]
				continue
			}
			name := rest[1:end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			s = rest[end+1:]
		default:
			b.WriteByte('$')
			b.WriteByte(rest[0])
			s = rest[1:]
		}
	}
}

// ExpandAll expands every string of in over vars.
func ExpandAll(in []string, vars map[string]string) []string {
	if in == nil {
		return nil
	}
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = Expand(s, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
	}
	return out
}
