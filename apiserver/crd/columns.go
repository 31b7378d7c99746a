package crd

import (
	"bytes"
	"reflect"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/util/jsonpath"

	"knarr.dev/knarr/api/kind"
)

// printer prints objects by a definition's additionalPrinterColumns.
type printer struct {
	columns []apiextensionsv1.CustomResourceColumnDefinition

	mu    sync.Mutex // a JSONPath keeps state while it is evaluated
	paths []*jsonpath.JSONPath
}

var creation = metav1.ObjectMeta{}.SwaggerDoc()

// definitions are the table's columns: the name first, and if nothing is
// declared the age.
func (p *printer) definitions() []metav1.TableColumnDefinition {
	if len(p.columns) == 0 {
		p.columns = []apiextensionsv1.CustomResourceColumnDefinition{{Name: "Age", Type: "date", Description: creation["creationTimestamp"], JSONPath: ".metadata.creationTimestamp"}}
	}
	out := []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: creation["name"]}}
	for _, c := range p.columns {
		doc := c.Description
		if doc == "" {
			doc = "Custom resource definition column (in JSONPath format): " + c.JSONPath
		}
		out = append(out, metav1.TableColumnDefinition{Name: c.Name, Type: c.Type, Format: c.Format, Description: doc, Priority: c.Priority})
	}
	return out
}

func (p *printer) row(o kind.Object, now time.Time) []any {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paths == nil {
		for _, c := range p.columns {
			path := jsonpath.New(c.Name).AllowMissingKeys(true)
			if path.Parse("{"+c.JSONPath+"}") != nil { // the definition's validation has parsed it
				path = nil
			}
			p.paths = append(p.paths, path)
		}
	}
	cells := []any{o.GetName()}
	for i := range p.columns {
		cells = append(cells, p.cell(i, o.(*unstructured.Unstructured).Object, now))
	}
	return cells
}

func (p *printer) cell(i int, obj map[string]any, now time.Time) any {
	path := p.paths[i]
	if path == nil {
		return nil
	}
	found, err := path.FindResults(obj)
	if err != nil || len(found) == 0 || len(found[0]) == 0 {
		return nil
	}
	value := found[0][0].Interface()
	switch p.columns[i].Type {
	case "string":
		var buf bytes.Buffer
		if path.PrintResults(&buf, []reflect.Value{reflect.ValueOf(value)}) != nil {
			return nil
		}
		return buf.String()
	case "integer":
		switch n := value.(type) {
		case int64:
			return n
		case float64:
			return int64(n)
		}
	case "number":
		switch n := value.(type) {
		case int64:
			return float64(n)
		case float64:
			return n
		}
	case "boolean":
		if b, ok := value.(bool); ok {
			return b
		}
	case "date":
		text, ok := value.(string)
		if !ok {
			return nil
		}
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return "<invalid>"
		}
		return duration.HumanDuration(now.Sub(at))
	}
	return nil
}
