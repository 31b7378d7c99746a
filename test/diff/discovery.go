package diff

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Served is what discovery says of a resource or subresource.
type Served struct {
	Kind       string   `json:"kind"`
	Version    string   `json:"version,omitempty"` // of the kind, with its group
	Scope      string   `json:"scope,omitempty"`
	Singular   string   `json:"singular,omitempty"`
	Verbs      []string `json:"verbs"`
	ShortNames []string `json:"shortNames,omitempty"`
	Categories []string `json:"categories,omitempty"`
}

// Discovery is all that a server serves, by "group/version resource[/subresource]",
// and the versions that it prefers, by group.
type Discovery struct {
	Resources map[string]Served `json:"resources"`
	Preferred map[string]string `json:"preferred"`
}

// Discover reads the aggregated discovery documents.
func (s *Server) Discover(ctx context.Context) (*Discovery, error) {
	out := &Discovery{Resources: map[string]Served{}, Preferred: map[string]string{}}
	for _, path := range []string{"/api", "/apis"} {
		r, err := s.accept(ctx, path, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
		if err != nil {
			return nil, err
		}
		var doc apidiscoveryv2.APIGroupDiscoveryList
		if err := json.Unmarshal(r, &doc); err != nil {
			return nil, fmt.Errorf("discovery of %s: %w", path, err)
		}
		for _, g := range doc.Items {
			for i, v := range g.Versions {
				if i == 0 {
					out.Preferred[g.Name] = v.Version
				}
				out.add(g.Name+"/"+v.Version, v.Resources)
			}
		}
	}
	return out, nil
}

func (d *Discovery) add(gv string, resources []apidiscoveryv2.APIResourceDiscovery) {
	for _, r := range resources {
		d.Resources[gv+" "+r.Resource] = served(Served{Scope: string(r.Scope), Singular: r.SingularResource, Verbs: r.Verbs,
			ShortNames: r.ShortNames, Categories: r.Categories}, r.ResponseKind)
		for _, s := range r.Subresources {
			d.Resources[gv+" "+r.Resource+"/"+s.Subresource] = served(Served{Verbs: s.Verbs}, s.ResponseKind)
		}
	}
}

func served(s Served, k *metav1.GroupVersionKind) Served {
	if k != nil {
		s.Kind = k.Kind
		if k.Group != "" || k.Version != "" {
			s.Version = k.Group + "/" + k.Version
		}
	}
	for _, list := range [][]string{s.Verbs, s.ShortNames, s.Categories} {
		sort.Strings(list)
	}
	return s
}

// Table is how kubectl shows an object.
type Table struct {
	Columns []string `json:"columns"` // "name type format priority"
	Cells   []any    `json:"cells"`
}

// ages are columns whose cells tell how long ago something was.
var ages = map[string]bool{"Age": true, "Created At": true, "Last Seen": true, "First Seen": true, "Duration": true, "Last Schedule": true}

// AskTable creates a case's object, reads it as a table and takes it away again;
// nil if the server refuses it.
func (s *Server) AskTable(ctx context.Context, c Case) (*Table, error) {
	v, stored, err := s.send(ctx, http.MethodPost, s.collection(c.Object), c.Object)
	if err != nil || v.Code >= 300 {
		return nil, err
	}
	b, err := s.accept(ctx, s.path(stored), "application/json;as=Table;v=v1;g=meta.k8s.io")
	if err != nil {
		return nil, err
	}
	var t metav1.Table
	if err := json.Unmarshal(b, &t); err != nil || len(t.Rows) != 1 {
		return nil, fmt.Errorf("%s: table of %d rows: %w", c.Name, len(t.Rows), err)
	}
	out := &Table{}
	for i, col := range t.ColumnDefinitions {
		out.Columns = append(out.Columns, strings.TrimSpace(fmt.Sprintf("%s %s %s %d", col.Name, col.Type, col.Format, col.Priority)))
		cell := t.Rows[0].Cells[i]
		if ages[col.Name] {
			cell = "age"
		}
		if obj, _ := stored["kind"].(string); obj == "Service" && col.Name == "Cluster-IP" {
			cell = "allocated"
		}
		if col.Name == "Available" && stored["kind"] == "APIService" || col.Name == "MissingPL" {
			cell = "found out at some time"
		}
		out.Cells = append(out.Cells, cell)
	}
	return out, s.remove(ctx, stored)
}

// accept gets a path in a form.
func (s *Server) accept(ctx context.Context, path, form string) ([]byte, error) {
	r, err := s.doAs(ctx, http.MethodGet, path, form, "application/json", nil)
	if err != nil {
		return nil, err
	}
	if r.code != http.StatusOK {
		return nil, fmt.Errorf("%s: %d: %s", path, r.code, r.body)
	}
	return r.body, nil
}
