package image

import (
	"fmt"
	"strconv"
	"strings"
)

// table is one table of a TOML file: the parts of its name, and its keys.
type table struct {
	name []string
	keys map[string]any // string, bool, int64 or []any of these
}

// parseTOML reads the part of TOML that hosts files are made of: tables with
// plain or quoted names, and keys with strings, truth values, whole numbers and
// arrays. The first table has no name. Tables come in the order of the file,
// which counts here and is why this is not left to a general parser.
func parseTOML(text string) ([]table, error) {
	p := &toml{text: text, line: 1}
	tables := []table{{keys: map[string]any{}}}
	for {
		p.space(true)
		if p.text == "" {
			return tables, nil
		}
		if p.take("[") {
			if p.take("[") {
				return nil, p.fail("arrays of tables are not understood")
			}
			name, err := p.path()
			if err != nil {
				return nil, err
			}
			if !p.take("]") {
				return nil, p.fail("a table's name must end with ]")
			}
			tables = append(tables, table{name, map[string]any{}})
		} else {
			name, err := p.path()
			if err != nil {
				return nil, err
			}
			if p.space(false); !p.take("=") {
				return nil, p.fail("expected = after %s", strings.Join(name, "."))
			}
			value, err := p.value(0)
			if err != nil {
				return nil, err
			}
			tables[len(tables)-1].keys[strings.Join(name, ".")] = value
		}
		p.space(false)
		if p.text != "" && p.text[0] != '\n' {
			return nil, p.fail("unexpected %q", p.text[:1])
		}
	}
}

type toml struct {
	text string // what is left
	line int
}

func (p *toml) fail(format string, args ...any) error {
	return fmt.Errorf("line %d: "+format, append([]any{p.line}, args...)...)
}

func (p *toml) take(s string) bool {
	rest, ok := strings.CutPrefix(p.text, s)
	if ok {
		p.text = rest
	}
	return ok
}

// space skips blanks and comments, and with lines the ends of lines.
func (p *toml) space(lines bool) {
	for p.text != "" {
		switch c := p.text[0]; {
		case c == ' ' || c == '\t' || c == '\r':
			p.text = p.text[1:]
		case c == '\n' && lines:
			p.line++
			p.text = p.text[1:]
		case c == '#':
			end := strings.IndexByte(p.text, '\n')
			if end < 0 {
				end = len(p.text)
			}
			p.text = p.text[end:]
		default:
			return
		}
	}
}

// path reads a name of parts joined by dots.
func (p *toml) path() ([]string, error) {
	var parts []string
	for {
		p.space(false)
		part, err := p.name()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
		if p.space(false); !p.take(".") {
			return parts, nil
		}
	}
}

func (p *toml) name() (string, error) {
	if p.text != "" && (p.text[0] == '"' || p.text[0] == '\'') {
		return p.quoted()
	}
	n := 0
	for n < len(p.text) && (p.text[n] == '_' || p.text[n] == '-' || p.text[n] >= '0' && p.text[n] <= '9' ||
		p.text[n]|0x20 >= 'a' && p.text[n]|0x20 <= 'z') {
		n++
	}
	if n == 0 {
		return "", p.fail("expected a name")
	}
	name := p.text[:n]
	p.text = p.text[n:]
	return name, nil
}

func (p *toml) quoted() (string, error) {
	if strings.HasPrefix(p.text, `"""`) || strings.HasPrefix(p.text, "'''") {
		return "", p.fail("strings of several lines are not understood")
	}
	for n := 1; n < len(p.text) && p.text[n] != '\n'; n++ {
		switch {
		case p.text[n] == '\\' && p.text[0] == '"':
			n++
		case p.text[n] == p.text[0]:
			raw := p.text[:n+1]
			p.text = p.text[n+1:]
			if raw[0] == '\'' {
				return raw[1:n], nil
			}
			s, err := strconv.Unquote(raw)
			if err != nil {
				return "", p.fail("malformed string %s", raw)
			}
			return s, nil
		}
	}
	return "", p.fail("a string has no end")
}

// maxDepth bounds arrays in arrays.
const maxDepth = 8

func (p *toml) value(depth int) (any, error) {
	p.space(depth > 0)
	switch {
	case p.text == "":
		return nil, p.fail("expected a value")
	case p.text[0] == '"' || p.text[0] == '\'':
		return p.quoted()
	case p.text[0] == '[':
		if depth == maxDepth {
			return nil, p.fail("too many arrays in arrays")
		}
		p.text = p.text[1:]
		list := []any{}
		for {
			if p.space(true); p.take("]") {
				return list, nil
			}
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			if p.space(true); !p.take(",") && !strings.HasPrefix(p.text, "]") {
				return nil, p.fail("expected , or ] in an array")
			}
		}
	}
	word, err := p.name()
	if err != nil {
		return nil, p.fail("expected a value")
	}
	switch word {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil {
		return nil, p.fail("%q is not a value that is understood", word)
	}
	return n, nil
}
