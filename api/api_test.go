package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api"
	"knarr.dev/knarr/api/kind"
)

var rewrite = flag.Bool("rewrite", false, "write what is into the golden files")

// now is the time of all rows in the tests.
var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// decode reads the YAML of one object and tells its kind.
func decode(t testing.TB, text string) (*kind.Kind, kind.Object) {
	t.Helper()
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	for _, k := range api.Kinds() {
		if apiVersion, name := k.GVK().ToAPIVersionAndKind(); apiVersion == head.APIVersion && name == head.Kind {
			o := k.New()
			if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
				t.Fatalf("%v in:\n%s", err, text)
			}
			return k, o
		}
	}
	t.Fatalf("no kind %s %s", head.APIVersion, head.Kind)
	return nil, nil
}

// create does what the server does to a new object.
func create(k *kind.Kind, o kind.Object) field.ErrorList {
	fill := func() {
		if k.Default != nil {
			k.Default(o)
		}
	}
	fill()
	switch {
	case k.PrepareCreate != nil:
		k.PrepareCreate(o)
	case k.HasStatus:
		kind.CopyStatus(o, k.New())
	}
	fill()
	if k.Validate == nil {
		return nil
	}
	return k.Validate(o)
}

// update does what the server does to a changed object.
func update(k *kind.Kind, o, old kind.Object) field.ErrorList {
	switch {
	case k.PrepareUpdate != nil:
		k.PrepareUpdate(o, old)
	case k.HasStatus:
		kind.CopyStatus(o, old)
	}
	if k.Default != nil {
		k.Default(o)
	}
	switch {
	case k.ValidateUpdate != nil:
		return k.ValidateUpdate(o, old)
	case k.Validate != nil:
		return k.Validate(o)
	}
	return nil
}

// print is the golden form of what a creation or update gave: the object, or the
// errors, in order of their paths and without the differences that they show.
func print(t testing.TB, o kind.Object, errs field.ErrorList) string {
	t.Helper()
	if len(errs) == 0 {
		b, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var lines []string
	for _, e := range errs {
		line, _, _ := strings.Cut(e.Error(), "\n")
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// TestGolden runs testdata/*.txt. A file holds cases of this form:
//
//	=== what is shown
//	the object to create, as YAML
//	--- update
//	the object to change it to (optional)
//	--- row
//	(optional: the object is only printed as a table row)
//	+++
//	what comes of it
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			for _, c := range strings.Split("\n"+string(text), "\n=== ")[1:] {
				title, rest, _ := strings.Cut(c, "\n")
				in, want, _ := strings.Cut(rest+"\n", "+++\n")
				got := run(t, in)
				fmt.Fprintf(&out, "=== %s\n%s+++\n%s", title, in, got)
				if strings.TrimSpace(got) != strings.TrimSpace(want) && !*rewrite {
					t.Errorf("%s: got\n%s\nwant\n%s", title, got, want)
				}
			}
			if *rewrite {
				if err := os.WriteFile(name, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func run(t *testing.T, in string) string {
	first, change, changes := strings.Cut(in, "--- update\n")
	first, _, row := strings.Cut(first, "--- row\n")
	k, o := decode(t, first)
	if row {
		if k.Default != nil {
			k.Default(o)
		}
		var b strings.Builder
		for i, cell := range k.Row(o, now) {
			fmt.Fprintf(&b, "%s: %v\n", k.Columns[i].Name, cell)
		}
		return b.String()
	}
	errs := create(k, o)
	if !changes {
		return print(t, o, errs)
	}
	if len(errs) > 0 {
		t.Fatalf("the object to change is invalid: %v", errs.ToAggregate())
	}
	_, next := decode(t, change)
	return print(t, next, update(k, next, o))
}

// FuzzKinds: whatever a client sends, defaults settle after one pass, and neither
// they, validation, rows nor fields panic.
func FuzzKinds(f *testing.F) {
	for i, k := range api.Kinds() {
		f.Add(i, []byte(`{}`))
		if k.Kind == "Pod" {
			f.Add(i, []byte(`{"spec":{"containers":[{"name":"a","image":"b","resources":{"limits":{"cpu":"1"}}}]}}`))
		}
		if k.Kind == "Service" {
			f.Add(i, []byte(`{"spec":{"clusterIP":"None","type":"NodePort","ports":[{"port":1}]}}`))
		}
	}
	f.Fuzz(func(t *testing.T, i int, data []byte) {
		kinds := api.Kinds()
		k := kinds[uint(i)%uint(len(kinds))]
		o := k.New()
		if json.Unmarshal(data, o) != nil {
			return
		}
		create(k, o)
		once := o.DeepCopyObject().(kind.Object)
		if k.Default != nil {
			k.Default(o)
		}
		a, _ := json.Marshal(once)
		b, _ := json.Marshal(o)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: defaults do not settle:\n%s\n%s", k.GVK(), a, b)
		}
		if k.Row != nil {
			k.Row(o, now)
		}
		if k.Fields != nil && k.Hub.Empty() { // a view's are given the stored object
			k.Fields(o)
		}
		update(k, o, once)
		if k.ValidateStatus != nil {
			k.ValidateStatus(o, once)
		}
	})
}
