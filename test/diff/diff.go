// Package diff holds knarr's API against upstream's: a corpus of manifests, good
// and bad, with the verdict and the stored object that upstream's API server gave
// for each.
//
// The corpus is corpus/*.txt. A case is a manifest that is created; variants of it
// follow, each with fields to set ("null" removes one):
//
//	=== title
//	apiVersion: v1
//	kind: ConfigMap
//	metadata: {name: c}
//	--- the name is missing
//	metadata.name: null
//	--- update: data changes
//	data: {a: b}
//
// A variant whose title begins with "update:" creates the manifest as it is and
// then replaces it; "status:" and other subresources' names (parts) replace what is
// there, or are posted the text. "patch:" and "resize by patch:" send the text as a
// strategic merge patch. Lines that say "then" with such a title are further steps;
// the last one's answer is what counts.
//
// Manifests that stand before the case's, divided by "---", are created first;
// their status too.
//
// recorded/*.json is what upstream answered; test/diff/record writes it.
package diff

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Case is one manifest and what is done with it.
type Case struct {
	Name   string // file: title: variant
	Object map[string]any
	// With are created before Object.
	With []map[string]any
	// Steps are done to what the server stored of Object.
	Steps []Step
	// First is true of the manifests themselves, which no variant has changed.
	First bool
}

// Verdict is a server's answer to a case.
type Verdict struct {
	Code    int             `json:"code"`
	Reason  string          `json:"reason,omitempty"`
	Message string          `json:"message,omitempty"`
	Causes  []Cause         `json:"causes,omitempty"`
	Retry   int32           `json:"retryAfterSeconds,omitempty"`
	Object  json.RawMessage `json:"object,omitempty"`
	// Stored is the case's object after steps that are answered otherwise; absent
	// if it has gone.
	Stored json.RawMessage `json:"stored,omitempty"`
}

// Cause is one field's fault.
type Cause struct {
	Reason  string `json:"reason"`
	Field   string `json:"field"`
	Message string `json:"message"`
}

// Load reads all cases of dir, by file.
func Load(dir string) (map[string][]Case, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	out := map[string][]Case{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		if out[name], err = parse(name, string(b)); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
	}
	return out, nil
}

func parse(file, text string) ([]Case, error) {
	var cases []Case
	for _, block := range strings.Split("\n"+text, "\n=== ")[1:] {
		title, rest, _ := strings.Cut(block, "\n")
		parts := strings.Split("\n"+rest, "\n--- ")
		name := file + ": " + title
		var manifests []map[string]any
		for _, text := range strings.Split(parts[0], "\n---\n") {
			m := map[string]any{}
			if err := yaml.Unmarshal([]byte(text), &m); err != nil {
				return nil, fmt.Errorf("%s: %w", title, err)
			}
			manifests = append(manifests, m)
		}
		last := len(manifests) - 1
		base, with := manifests[last], manifests[:last]
		cases = append(cases, Case{Name: name, Object: base, With: with, First: true})
		for _, v := range parts[1:] {
			title, changes, _ := strings.Cut(v, "\n")
			c := Case{Name: name + ": " + title, Object: base, With: with}
			var err error
			if c.Steps, err = steps(title, changes); err == nil && c.Steps == nil {
				c.Object, err = changed(base, changes)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", name, title, err)
			}
			cases = append(cases, c)
		}
	}
	return cases, nil
}

// changed sets the fields named by "path: value" in a copy of base.
func changed(base map[string]any, changes string) (map[string]any, error) {
	b, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	var obj map[string]any
	if err := json.Unmarshal(b, &obj); err != nil {
		return nil, err
	}
	set := map[string]any{}
	if err := yaml.Unmarshal([]byte(changes), &set); err != nil {
		return nil, err
	}
	for _, path := range sortedKeys(set) {
		if _, err := put(obj, split(path), set[path]); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return obj, nil
}

var step = regexp.MustCompile(`[^.\[\]]+|\[\d+\]|\['[^']*'\]`)

// split cuts a.b[0]['x.y'] into its steps.
func split(path string) []string { return step.FindAllString(path, -1) }

// put returns v with the value at path set.
func put(v any, path []string, value any) (any, error) {
	if len(path) == 0 {
		return value, nil
	}
	if key, ok := strings.CutPrefix(path[0], "["); ok && !strings.HasPrefix(key, "'") {
		i, err := strconv.Atoi(strings.TrimSuffix(key, "]"))
		list, isList := v.([]any)
		if err != nil || !isList && v != nil || i > len(list) {
			return nil, fmt.Errorf("no list with an item %s", path[0])
		}
		if i == len(list) {
			list = append(list, nil)
		}
		next, err := put(list[i], path[1:], value)
		if err != nil {
			return nil, err
		}
		if next == nil {
			return append(list[:i:i], list[i+1:]...), nil
		}
		list[i] = next
		return list, nil
	}
	key := strings.Trim(path[0], "[']")
	m, ok := v.(map[string]any)
	if !ok {
		if v != nil {
			return nil, fmt.Errorf("%s: not in an object", key)
		}
		m = map[string]any{}
	}
	next, err := put(m[key], path[1:], value)
	if err != nil {
		return nil, err
	}
	if next == nil {
		delete(m, key)
	} else {
		m[key] = next
	}
	return m, nil
}

// volatile are the fields that differ from run to run.
var volatile = []string{"uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink"}

// moments are fields that hold the time of the request.
var moments = regexp.MustCompile(`("(?:lastTransitionTime|lastPhaseTransitionTime|lastUpdateTime|lastProbeTime|timeAdded|deletionTimestamp|expirationTimestamp)":)"[^"]*"`)

var random = regexp.MustCompile(`(kube-api-access-|Bad_)[a-z0-9]{5}`) // the volume of a token, a generated name

var identity = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// verdict reads an answer.
func verdict(code int, body []byte, sent map[string]any) (*Verdict, error) {
	body = identity.ReplaceAll(random.ReplaceAll(body, []byte("${1}x")), []byte("an identity"))
	v := &Verdict{Code: code}
	if code >= 300 {
		var s metav1.Status
		if err := json.Unmarshal(body, &s); err != nil {
			return nil, fmt.Errorf("answer %d: %q: %w", code, body, err)
		}
		v.Reason, v.Message = string(s.Reason), s.Message
		if s.Details != nil {
			v.Retry = s.Details.RetryAfterSeconds
			for _, c := range s.Details.Causes {
				v.Causes = append(v.Causes, Cause{string(c.Type), c.Field, c.Message})
			}
		}
		sort.SliceStable(v.Causes, func(i, j int) bool {
			a, b := v.Causes[i], v.Causes[j]
			return a.Field+a.Reason+a.Message < b.Field+b.Reason+b.Message
		})
		return v, nil
	}
	var obj map[string]any
	body = moments.ReplaceAll(body, []byte(`$1"now"`))
	if err := json.Unmarshal(body, &obj); err != nil {
		return nil, err
	}
	if meta, ok := obj["metadata"].(map[string]any); ok {
		for _, f := range volatile {
			delete(meta, f)
		}
	}
	allocated(obj, sent)
	personal(obj)
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetIndent("  ", " ")
	if err := e.Encode(obj); err != nil {
		return nil, err
	}
	v.Object = bytes.TrimSpace(buf.Bytes())
	return v, nil
}

// personal blanks who the administrator is, and tokens.
func personal(obj map[string]any) {
	spec, _ := obj["spec"].(map[string]any)
	status, _ := obj["status"].(map[string]any)
	switch obj["kind"] {
	case "CertificateSigningRequest":
		for _, f := range []string{"username", "uid", "groups", "extra"} {
			delete(spec, f)
		}
	case "TokenRequest":
		if status["token"] != "" {
			status["token"] = "a token"
		}
	}
}

// allocated blanks what a server picks by chance for a Service, and when it finds
// out that one is not there.
func allocated(obj, sent map[string]any) {
	spec, _ := obj["spec"].(map[string]any)
	if obj["kind"] == "APIService" && spec["service"] != nil || obj["kind"] == "FlowSchema" {
		delete(obj, "status") // a controller's, at some time
	}
	if status, ok := obj["status"].(map[string]any); ok && obj["kind"] == "CustomResourceDefinition" {
		delete(status, "acceptedNames") // likewise
		delete(status, "conditions")
	}
	if obj["kind"] != "Service" {
		return
	}
	asked, _ := sent["spec"].(map[string]any)
	if asked["clusterIP"] == nil && spec["clusterIP"] != nil {
		spec["clusterIP"], spec["clusterIPs"] = "allocated", []any{"allocated"}
	}
	ports, _ := spec["ports"].([]any)
	for _, p := range ports {
		if m, _ := p.(map[string]any); m["nodePort"] != nil && !strings.Contains(fmt.Sprint(asked["ports"]), fmt.Sprint(m["nodePort"])) {
			m["nodePort"] = "allocated"
		}
	}
}

func sortedKeys[T any](m map[string]T) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
