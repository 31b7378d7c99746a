package diff_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/test/diff"
)

// TestSameAsUpstream puts the corpus to knarr's API server and compares: code,
// reason, each cause's reason and field, and the stored object. Equal causes count
// once. Causes' messages are compared too, but only counted. exceptions.txt names the cases that may
// differ, with the reason; one that has become needless fails.
func TestSameAsUpstream(t *testing.T) {
	corpus, err := diff.Load("corpus")
	if err != nil {
		t.Fatal(err)
	}
	excused := exceptions(t)
	srv := start(t)
	define(t, srv)
	cases, words := 0, 0
	changes := map[string]int{} // by subresource
	for file, list := range corpus {
		recorded := map[string]*diff.Verdict{}
		b, err := os.ReadFile(filepath.Join("recorded", file+".json"))
		if err != nil {
			t.Fatalf("%v: make record writes it", err)
		}
		if err := json.Unmarshal(b, &recorded); err != nil {
			t.Fatal(err)
		}
		t.Run(file, func(t *testing.T) {
			for _, c := range list {
				cases++
				if n := len(c.Steps); n > 0 {
					changes[c.Steps[n-1].Part]++
				}
				want := recorded[c.Name]
				if want == nil {
					t.Errorf("%s: not recorded yet: make record", c.Name)
					continue
				}
				got, err := srv.Ask(t.Context(), c)
				if err != nil {
					t.Errorf("%s: %v", c.Name, err)
					continue
				}
				difference := compare(got, want)
				why, ok := excused[c.Name]
				delete(excused, c.Name)
				switch {
				case difference != "" && !ok:
					t.Errorf("%s\n%s", c.Name, difference)
				case difference == "" && ok:
					t.Errorf("%s: answers alike now: take its exception away (%s)", c.Name, why)
				}
				if difference == "" && slices.Equal(slices.Compact(got.Causes), slices.Compact(want.Causes)) {
					words++
				}
			}
		})
	}
	for name := range excused {
		if strings.HasPrefix(name, "discovery: ") || strings.HasPrefix(name, "table: ") {
			continue // for the other tests
		}
		t.Errorf("exceptions.txt: no case is called %q", name)
	}
	own, parts := changes[""], 0
	for part, n := range changes {
		if part != "" {
			parts += n
		}
	}
	t.Logf("%d cases compared: %d creations, %d changes of objects and %d by subresources (%v); %d of them alike to the last word of their causes",
		cases, cases-own-parts, own, parts, changes, words)
}

// start runs knarr's API server.
func start(t *testing.T) *diff.Server {
	s := apitest.Start(t, apitest.Options{})
	client, err := rest.HTTPClientFor(s.Admin(t))
	if err != nil {
		t.Fatal(err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	srv := &diff.Server{URL: s.URL, Client: client}
	if err := srv.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return srv
}

// define makes the custom resources of the corpus.
func define(t *testing.T, srv *diff.Server) {
	t.Helper()
	if err := srv.Define(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// compare says how two verdicts differ; empty: they do not.
func compare(got, want *diff.Verdict) string {
	if got.Code != want.Code || got.Reason != want.Reason || got.Retry != want.Retry {
		return "got  " + line(got) + "\nwant " + line(want)
	}
	causes := func(v *diff.Verdict) (out []string) {
		for _, c := range v.Causes {
			out = append(out, c.Field+" "+c.Reason)
		}
		return slices.Compact(out) // upstream checks some things twice
	}
	if g, w := causes(got), causes(want); !reflect.DeepEqual(g, w) {
		return "got causes  " + strings.Join(g, "; ") + "\nwant causes " + strings.Join(w, "; ") + "\n(" + want.Message + ")"
	}
	var out []string
	differences("", parsed(got.Object), parsed(want.Object), &out)
	differences("stored", parsed(got.Stored), parsed(want.Stored), &out)
	return strings.Join(out, "\n")
}

// parsed reads JSON; nil if there is none.
func parsed(b json.RawMessage) (v any) {
	if json.Unmarshal(b, &v) != nil {
		return nil
	}
	return v
}

func line(v *diff.Verdict) string {
	b, _ := json.Marshal(v.Code)
	return fmt.Sprintf("%s %s %s (again after %d s)", b, v.Reason, v.Message, v.Retry)
}

// differences lists the fields in which two objects differ.
func differences(path string, got, want any, out *[]string) {
	g, ok1 := got.(map[string]any)
	w, ok2 := want.(map[string]any)
	if ok1 && ok2 {
		for k := range g {
			differences(path+"."+k, g[k], w[k], out)
		}
		for k := range w {
			if _, ok := g[k]; !ok {
				differences(path+"."+k, nil, w[k], out)
			}
		}
		return
	}
	gl, ok1 := got.([]any)
	wl, ok2 := want.([]any)
	if ok1 && ok2 && len(gl) == len(wl) {
		for i := range gl {
			differences(path+"[]", gl[i], wl[i], out)
		}
		return
	}
	if !reflect.DeepEqual(got, want) {
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		*out = append(*out, path+": got "+string(a)+" want "+string(b))
	}
}

// exceptions reads "case | reason" lines.
func exceptions(t *testing.T) map[string]string {
	b, err := os.ReadFile("exceptions.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, l := range strings.Split(string(b), "\n") {
		if name, why, ok := strings.Cut(l, " | "); ok && !strings.HasPrefix(l, "#") {
			out[name] = why
		}
	}
	return out
}
