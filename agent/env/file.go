package env

import (
	"fmt"
	"strings"
)

// ParseFile reads an env file:
// https://kubernetes.io/docs/tasks/inject-data-application/define-environment-variable-via-file/#env-file-syntax.
// A line is NAME='value', empty, or a comment that begins with #; what stands between
// the quotes is taken as it is, over as many lines as it has. The last of several
// values of a name counts.
func ParseFile(text string) (map[string]string, error) {
	vars := map[string]string{}
	for line := 1; text != ""; line++ {
		current, rest, _ := strings.Cut(text, "\n")
		text = rest
		trimmed := strings.TrimSpace(current)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(current, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return nil, fmt.Errorf("line %d: want NAME='value'", line)
		}
		begin := line
		value, ok = strings.CutPrefix(strings.TrimLeft(value, " \t"), "'")
		if !ok {
			return nil, fmt.Errorf("line %d: the value of %s must be enclosed in single quotes", begin, name)
		}
		for !strings.Contains(value, "'") {
			if text == "" {
				return nil, fmt.Errorf("line %d: the value of %s has no closing quote", begin, name)
			}
			current, text, _ = strings.Cut(text, "\n")
			value += "\n" + current
			line++
		}
		value, after, _ := strings.Cut(value, "'")
		if strings.TrimSpace(after) != "" {
			return nil, fmt.Errorf("line %d: nothing may follow the closing quote of %s", line, name)
		}
		vars[name] = value
	}
	return vars, nil
}
