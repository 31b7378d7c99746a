package server

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

const textFormat = "text/plain; version=0.0.4; charset=utf-8"

// exposition collects samples in Prometheus' text format, each family together
// under its help and type, in the order in which families first come.
type exposition struct {
	order []*family
	named map[string]*family
}

type family struct {
	name, help, kind string
	rows             strings.Builder
}

// add adds a sample; labels are pairs of name and value. A zero time leaves the time
// out. A nil value adds nothing.
func (e *exposition) add(name, kind, help string, value *float64, at time.Time, labels ...string) {
	if value == nil {
		return
	}
	f := e.named[name]
	if f == nil {
		if e.named == nil {
			e.named = map[string]*family{}
		}
		f = &family{name: name, help: help, kind: kind}
		e.named[name] = f
		e.order = append(e.order, f)
	}
	f.rows.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		f.rows.WriteByte(sep)
		f.rows.WriteString(labels[i] + `="` + escape.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 1 {
		f.rows.WriteByte('}')
	}
	f.rows.WriteByte(' ')
	f.rows.WriteString(strconv.FormatFloat(*value, 'g', -1, 64))
	if !at.IsZero() {
		f.rows.WriteByte(' ')
		f.rows.WriteString(strconv.FormatInt(at.UnixMilli(), 10))
	}
	f.rows.WriteByte('\n')
}

// escape is the format's way to write label values.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// write sends all families, by name.
func (e *exposition) write(w io.Writer) error {
	slices.SortFunc(e.order, func(a, b *family) int { return strings.Compare(a.name, b.name) })
	for _, f := range e.order {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s", f.name, f.help, f.name, f.kind, f.rows.String()); err != nil {
			return err
		}
	}
	return nil
}

// number converts what was counted; nil stays nil.
func number(n *uint64) *float64 {
	if n == nil {
		return nil
	}
	v := float64(*n)
	return &v
}

// seconds converts nanoseconds.
func seconds(n *uint64) *float64 {
	if n == nil {
		return nil
	}
	v := float64(*n) / 1e9
	return &v
}
