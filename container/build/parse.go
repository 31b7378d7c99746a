package build

import (
	"encoding/json"
	"fmt"
	"strings"
)

// instruction is one of a Dockerfile, its continued lines joined.
type instruction struct {
	line  int // where it begins
	name  string
	flags map[string]string
	rest  string   // after name and flags
	json  []string // rest, when it is in the JSON form
}

func (i *instruction) fail(format string, args ...any) error {
	return fmt.Errorf("line %d: %s: "+format, append([]any{i.line, i.name}, args...)...)
}

// parse reads a Dockerfile.
func parse(text string) ([]instruction, error) {
	var list []instruction
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	for n := 0; n < len(lines); n++ {
		at, whole, more := n+1, "", true
		for ; more && n < len(lines); n++ {
			l := strings.TrimSpace(lines[n])
			if strings.HasPrefix(l, "#") || l == "" && whole != "" {
				continue // comments and empty lines do not end an instruction
			}
			l, more = strings.CutSuffix(l, "\\")
			whole += l
			if more {
				whole += " "
			}
		}
		n--
		whole = strings.TrimSpace(whole)
		if whole == "" {
			continue
		}
		i, err := instructionOf(whole, at)
		if err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	return list, nil
}

func instructionOf(whole string, line int) (instruction, error) {
	name, rest, _ := strings.Cut(whole, " ")
	i := instruction{line: line, name: strings.ToUpper(name), flags: map[string]string{}, rest: strings.TrimSpace(rest)}
	for strings.HasPrefix(i.rest, "--") {
		flag, rest, _ := strings.Cut(i.rest, " ")
		key, value, _ := strings.Cut(flag[2:], "=")
		i.flags[key], i.rest = value, strings.TrimSpace(rest)
	}
	if i.rest == "" {
		return i, i.fail("it wants an argument")
	}
	if strings.HasPrefix(i.rest, "[") {
		// What is no JSON is text that begins with a bracket.
		if json.Unmarshal([]byte(i.rest), &i.json) != nil {
			i.json = nil
		}
	}
	return i, nil
}

// command is the argument of CMD and ENTRYPOINT: a list, or text for a shell.
func (i *instruction) command() []string {
	if i.json != nil {
		return i.json
	}
	return []string{"/bin/sh", "-c", i.rest}
}

// expand puts variables in: $name, ${name}, ${name:-otherwise}, ${name:+instead}.
// A backslash takes the meaning of the next character away.
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for n := 0; n < len(s); n++ {
		switch {
		case s[n] == '\\' && n+1 < len(s):
			n++
			b.WriteByte(s[n])
		case s[n] == '$' && n+1 < len(s) && s[n+1] == '{':
			end := strings.IndexByte(s[n:], '}')
			if end < 0 {
				return "", fmt.Errorf("%q: ${ has no }", s)
			}
			value, err := substitute(s[n+2:n+end], lookup)
			if err != nil {
				return "", err
			}
			b.WriteString(value)
			n += end
		case s[n] == '$':
			end := n + 1
			for end < len(s) && nameByte(s[end]) {
				end++
			}
			if end == n+1 {
				b.WriteByte('$')
				continue
			}
			value, _ := lookup(s[n+1 : end])
			b.WriteString(value)
			n = end - 1
		default:
			b.WriteByte(s[n])
		}
	}
	return b.String(), nil
}

func substitute(expr string, lookup func(string) (string, bool)) (string, error) {
	end := 0
	for end < len(expr) && nameByte(expr[end]) {
		end++
	}
	name, op := expr[:end], expr[end:]
	value, _ := lookup(name)
	switch {
	case name == "":
	case op == "":
		return value, nil
	case strings.HasPrefix(op, ":-"):
		if value == "" {
			return op[2:], nil
		}
		return value, nil
	case strings.HasPrefix(op, ":+"):
		if value != "" {
			return op[2:], nil
		}
		return "", nil
	}
	return "", fmt.Errorf("${%s} is not understood: use ${name}, ${name:-otherwise} or ${name:+instead}", expr)
}

func nameByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}

// words splits at blanks that are not in quotes, and takes the quotes away.
func words(s string) ([]string, error) {
	var list []string
	var b strings.Builder
	quote, any := byte(0), false
	for n := 0; n < len(s); n++ {
		switch c := s[n]; {
		case quote == 0 && (c == '"' || c == '\''):
			quote, any = c, true
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && n+1 < len(s):
			n++
			any = true
			b.WriteByte(s[n])
		case quote == 0 && (c == ' ' || c == '\t'):
			if any {
				list = append(list, b.String())
			}
			b.Reset()
			any = false
		default:
			any = true
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%q: a quotation mark is missing", s)
	}
	if any {
		list = append(list, b.String())
	}
	return list, nil
}
