package clients

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// step is one command line of a script, and patterns that its output must have.
type step struct {
	line  string
	fails bool
	want  []string
	not   []string
	lacks string // why it does not work yet
}

// script runs the steps of a file one after the other.
func script(t *testing.T, file, kubectl, ns string, vars ...string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	manifests := filepath.Join(dir, "manifests")
	copyTree(t, "testdata", manifests)
	for _, s := range parse(t, string(text)) {
		t.Run(strings.SplitN(s.line, "\n", 2)[0], func(t *testing.T) {
			out, err := shell(t, kubectl, dir, s.line, append(vars, "NS="+ns, "M="+manifests+"/kubectl", "C="+manifests+"/charts")...)
			if s.lacks != "" {
				if err == nil {
					t.Fatalf("works now, take the mark away: %s", s.lacks)
				}
				t.Skip(s.lacks)
			}
			if (err != nil) != s.fails {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, w := range s.want {
				if !regexp.MustCompile("(?m)" + strings.ReplaceAll(w, "NS", ns)).MatchString(out) {
					t.Errorf("want %q in\n%s", w, out)
				}
			}
			for _, w := range s.not {
				if regexp.MustCompile("(?m)" + strings.ReplaceAll(w, "NS", ns)).MatchString(out) {
					t.Errorf("do not want %q in\n%s", w, out)
				}
			}
		})
	}
}

// parse reads a script: "$ LINE" must succeed, "! LINE" must fail; "> PATTERN" below
// must be found in its output, "< PATTERN" must not; "~ REASON" marks what knarr cannot do
// yet: it is skipped as long as it fails, and fails when it works; "\" at the end of a command
// continues it in the next line.
func parse(t *testing.T, text string) []step {
	t.Helper()
	var out []step
	for l := range strings.SplitSeq(strings.ReplaceAll(text, "\\\n", "\n\\"), "\n") {
		mark, rest, _ := strings.Cut(l, " ")
		switch {
		case l == "" || mark == "#":
		case strings.HasPrefix(l, "\\"):
			out[len(out)-1].line += "\n" + l[1:]
		case mark == "$" || mark == "!":
			out = append(out, step{line: rest, fails: mark == "!"})
		case mark == ">":
			out[len(out)-1].want = append(out[len(out)-1].want, rest)
		case mark == "~":
			out[len(out)-1].lacks = rest
		case mark == "<":
			out[len(out)-1].not = append(out[len(out)-1].not, rest)
		default:
			t.Fatalf("script: %q: want $, !, >, < or #", l)
		}
	}
	return out
}

// TestKubectl runs every command of kubectl, in its own and in its oldest version.
func TestKubectl(t *testing.T) {
	for _, version := range []string{"kubectl136", "kubectl132"} {
		t.Run(version, func(t *testing.T) {
			script(t, "testdata/kubectl.txt", version, version)
		})
	}
}

// TestHelm installs, upgrades, rolls back, tests and uninstalls three charts.
func TestHelm(t *testing.T) {
	for _, helm := range []string{"helm3", "helm4"} {
		t.Run(helm, func(t *testing.T) {
			script(t, "testdata/helm.txt", "kubectl136", helm, "H="+helm)
		})
	}
}

// copyTree copies files to where the test may change them, with the test image in
// place of IMAGE.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		out := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		return os.WriteFile(out, bytes.ReplaceAll(b, []byte("IMAGE"), []byte(shared.image)), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}
