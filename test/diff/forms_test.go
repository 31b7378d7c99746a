package diff_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"knarr.dev/knarr/test/diff"
)

func recorded(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("recorded", name+".json"))
	if err != nil {
		t.Fatalf("%v: make record writes it", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// judge compares two answers about name; excuses[prefix+name] lets them differ.
func judge(t *testing.T, prefix, name string, got, want any, excuses map[string]string) {
	t.Helper()
	why, excused := excuses[prefix+name]
	delete(excuses, prefix+name)
	same := reflect.DeepEqual(got, want)
	if same == excused {
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		t.Errorf("%s%s (%s):\ngot  %s\nwant %s", prefix, name, why, g, w)
	}
}

// excusesFor are the exceptions of a prefix.
func excusesFor(t *testing.T, prefix string) map[string]string {
	out := map[string]string{}
	for name, why := range exceptions(t) {
		if strings.HasPrefix(name, prefix) {
			out[name] = why
		}
	}
	return out
}

// TestDiscovery: what upstream serves is served, with the same names and verbs.
// What upstream does not serve is old, which knarr means to serve (api/legacy), or
// an exception.
func TestDiscovery(t *testing.T) {
	const prefix = "discovery: "
	var want diff.Discovery
	recorded(t, "discovery", &want)
	got, err := start(t).Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	excuses := excusesFor(t, prefix)
	for name, w := range want.Resources {
		g, ok := got.Resources[name]
		if !ok {
			judge(t, prefix, name, nil, w, excuses)
			continue
		}
		judge(t, prefix, name, g, w, excuses)
	}
	old := 0
	for name, g := range got.Resources {
		if _, ok := want.Resources[name]; ok {
			continue
		}
		gv, _, _ := strings.Cut(name, " ")
		if strings.Contains(gv, "beta") || strings.Contains(gv, "alpha") {
			if len(g.ShortNames)+len(g.Categories) > 0 && !strings.HasPrefix(name, "admissionregistration.k8s.io/") {
				t.Errorf("%s: an old version with short names %v, categories %v", name, g.ShortNames, g.Categories)
			}
			old++
			continue
		}
		judge(t, prefix, name, g, nil, excuses)
	}
	for group, version := range want.Preferred {
		if got.Preferred[group] != version {
			t.Errorf("preferred version of %s: %s, want %s", group, got.Preferred[group], version)
		}
	}
	for name := range excuses {
		t.Errorf("exceptions.txt: nothing is called %q", name)
	}
	t.Logf("%d resources of upstream, %d of old versions", len(want.Resources), old)
}

// TestTables: kubectl shows an object of each kind alike.
func TestTables(t *testing.T) {
	const prefix = "table: "
	var want map[string]*diff.Table
	recorded(t, "tables", &want)
	corpus, err := diff.Load("corpus")
	if err != nil {
		t.Fatal(err)
	}
	excuses := excusesFor(t, prefix)
	srv := start(t)
	define(t, srv)
	for _, list := range corpus {
		for _, c := range list {
			if !c.First {
				continue
			}
			got, err := srv.AskTable(t.Context(), c)
			if err != nil {
				t.Errorf("%s: %v", c.Name, err)
				continue
			}
			judge(t, prefix, c.Name, got, want[c.Name], excuses)
		}
	}
	for name := range excuses {
		t.Errorf("exceptions.txt: nothing is called %q", name)
	}
	t.Logf("%d tables", len(want))
}
